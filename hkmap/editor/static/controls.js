// The brush, and how the map is shown: the controls beside the image, remembered from visit to visit.

const KEPT = "hkmap edit";
const BRUSH = { tool: "add", shape: "brush", share: 0.06, strength: 1, softness: 0.5 };    // share: of the shorter side
const DISPLAY = { opacity: 0.6, colours: "viridis", stretch: false, cells: false };
const RANGES = ["radius", "strength", "softness", "opacity"];
const STEP = 0.1;           // of a key, for what goes from 0 to 1
const GROWTH = 1.2;         // of a key, for the radius

/** Return what an earlier visit kept under a name, over what stands at first. */
export function remembered(name, first) {
    try {
        return { ...first, ...JSON.parse(localStorage.getItem(KEPT) ?? "{}")[name] };
    } catch {
        return { ...first };        // no storage, or not ours
    }
}

export function remember(name, values) {
    try {
        const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
        localStorage.setItem(KEPT, JSON.stringify({ ...kept, [name]: values }));
    } catch {
        // a browser that keeps nothing
    }
}

export class Controls {
    brush = remembered("brush", BRUSH);
    display = remembered("display", DISPLAY);
    #changed;
    #side = 224;            // the image's shorter side, in pixels

    /** `changed(names)` is called after each change of `brush` or `display`. */
    constructor(changed) {
        this.#changed = changed;
        for (const button of document.querySelectorAll("[data-tool]")) {
            button.onclick = () => this.set({ tool: button.dataset.tool });
        }
        for (const button of document.querySelectorAll("[data-shape]")) {
            button.onclick = () => this.set({ shape: button.dataset.shape });
        }
        for (const name of RANGES) {
            const range = document.getElementById(name);
            range.oninput = () => this.set({ [name]: range.valueAsNumber });
        }
        for (const name of ["stretch", "cells"]) {
            const box = document.getElementById(name);
            box.onchange = () => this.set({ [name]: box.checked });
        }
        const colours = document.getElementById("colours");
        colours.onchange = () => this.set({ colours: colours.value });
        this.fit([this.#side, this.#side]);
    }

    /** Take over the frame [width, height] of another image: the brush keeps its size relative to the image. */
    fit([width, height]) {
        this.#side = Math.min(width, height);
        document.getElementById("radius").max = Math.max(10, Math.round(this.#side / 3));
        this.set({ radius: Math.max(1, this.brush.share * this.#side) });
    }

    set(changes) {
        for (const name of Object.keys(changes)) (name in DISPLAY ? this.display : this.brush)[name] = changes[name];
        this.brush.share = this.brush.radius / this.#side;
        const { radius, ...brush } = this.brush;
        remember("brush", brush);
        remember("display", this.display);
        this.show();
        this.#changed(Object.keys(changes));
    }

    /** Make a value smaller (-1) or larger (1) by a key's step. */
    step(name, direction) {
        const { min, max } = document.getElementById(name);
        const now = this.brush[name] ?? this.display[name];
        const next = name === "radius" ? now * GROWTH ** direction : Math.round((now + direction * STEP) * 20) / 20;
        this.set({ [name]: Math.min(Number(max), Math.max(Number(min), next)) });
    }

    toggle(name) {
        this.set({ [name]: !this.display[name] });
    }

    nextColours() {
        const names = [...document.getElementById("colours").options].map((option) => option.value);
        this.set({ colours: names[(names.indexOf(this.display.colours) + 1) % names.length] });
    }

    show() {
        const { brush, display } = this;
        for (const name of ["tool", "shape"]) {
            for (const button of document.querySelectorAll(`[data-${name}]`)) {
                button.ariaPressed = String(button.dataset[name] === brush[name]);
            }
        }
        for (const name of RANGES) {
            const value = brush[name] ?? display[name];
            document.getElementById(name).value = value;
            document.querySelector(`output[for=${name}]`).value = name === "radius"
                ? `${value.toFixed(value < 10 ? 1 : 0)} px` : `${Math.round(100 * value)} %`;
        }
        for (const name of ["stretch", "cells"]) document.getElementById(name).checked = display[name];
        document.getElementById("colours").value = display.colours;
    }
}
