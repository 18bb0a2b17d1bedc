// The images of the records: fetched once, the last ones kept.

const KEPT = 8;

export class Images {
    #found = new Map();         // promises by number, the latest last

    /** Return a promise of an image; it fails with the editor's sentence, or with a TypeError where nobody answers. */
    get(number) {
        const image = this.#found.get(number) ?? fetched(number);
        this.#found.delete(number);
        this.#found.set(number, image);
        image.catch(() => this.#found.delete(number));
        if (this.#found.size > KEPT) this.#found.delete(this.#found.keys().next().value);
        return image;
    }
}

async function fetched(number) {
    const response = await fetch(`/image/${number}`);
    if (!response.ok) throw new Error(await response.text());
    return createImageBitmap(await response.blob());
}
