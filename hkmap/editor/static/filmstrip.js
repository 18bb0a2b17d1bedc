// The records at the bottom of the page: which of them are shown, in what order, and their thumbnails.

const BESIDE = 4;           // frames beyond the edges that stand ready
const SETTLED = 80;         // milliseconds that a frame stands still before its thumbnail is fetched

export const STATES = { untouched: "Untouched", edited: "Edited", confirmed: "Confirmed", skipped: "Skipped" };
const ORDERS = {
    given: "As given", confidence: "Least confident first", disagreement: "Attention far from the human map first",
    edit_response: "Answer moved most by the map first",
};

/** Return whether the network is known to be wrong about a record. */
function isWrong({ label, now, prediction }) {
    const answer = now ?? prediction ?? null;
    return label >= 0 && answer !== null && answer !== label;
}

/** Return whether a record of a state is left to be done. */
const isLeft = ({ state }) => state === "untouched" || state === "edited";

/** Return whether a record is to be shown: `filter` is "all", "left", "wrong" or a state, `name` a class or "". */
function matches(record, filter, name) {
    const fits = { all: true, left: isLeft(record), wrong: isWrong(record) }[filter] ?? record.state === filter;
    return fits && (name === "" || record.class === name);
}

export class Filmstrip {
    numbers = [];           // of the records that are shown, in order
    current = null;
    #records;
    #orders;
    #choose;
    #frames = new Map();
    #parts = {};
    #width = 1;

    /** `choose(number)` is called for the frame that a person takes, and where what is shown changes. */
    constructor({ records, orders, order }, choose) {
        this.#records = records;
        this.#orders = { given: records.map((_, number) => number), ...orders };
        this.#choose = choose;
        for (const id of ["filmstrip", "filter", "filter-class", "order", "count", "remaining", "nothing"]) {
            this.#parts[id] = document.getElementById(id);
        }
        this.#fillMenus(order);
        this.#listen();
    }

    /** Make a record the current one; those that no longer match drop out of sight. */
    go(number) {
        this.current = number;
        this.#list();
        this.#reveal();
    }

    /** Return the record that is some steps away in what is shown, null beyond its ends. */
    neighbour(step) {
        return this.numbers[this.numbers.indexOf(this.current) + step] ?? null;
    }

    /** Return the next record that is left to be done, from the current one on and around; null if none is. */
    nextLeft() {
        const at = this.numbers.indexOf(this.current);
        const around = [...this.numbers.slice(at + 1), ...this.numbers.slice(0, Math.max(at, 0))];
        return around.find((number) => isLeft(this.#records[number])) ?? null;
    }

    /** Show what is known of a record now. */
    refresh(number) {
        const frame = this.#frames.get(number);
        if (frame) this.#write(frame, number);
        this.#counts();
    }

    showAll() {
        this.#parts.filter.value = "all";
        this.#parts["filter-class"].value = "";
        this.#refilter();
    }

    #fillMenus(order) {
        const records = this.#records, { filter, order: orders } = this.#parts;
        for (const name of ["all", "left", ...Object.keys(STATES), "wrong"]) {
            const text = { all: "All", left: "To do", wrong: "Still wrong" }[name] ?? STATES[name];
            filter.append(new Option(text, name));
        }
        const classes = [...new Set(records.map((record) => record.class ?? ""))].filter(Boolean);
        classes.sort((one, other) => one.localeCompare(other, undefined, { numeric: true }));
        const menu = this.#parts["filter-class"];
        menu.append(new Option("all classes", ""), ...classes.map((name) => new Option(name, name)));
        menu.parentElement.hidden = classes.length < 2;
        for (const name of Object.keys(this.#orders)) orders.append(new Option(ORDERS[name] ?? name, name));
        orders.value = order in this.#orders ? order : "given";
        orders.parentElement.hidden = orders.length < 2;
    }

    #listen() {
        const { filmstrip, filter, order } = this.#parts;
        for (const menu of [filter, this.#parts["filter-class"], order]) menu.onchange = () => this.#refilter();
        filmstrip.addEventListener("scroll", () => this.#draw(), { passive: true });
        filmstrip.addEventListener("wheel", (event) => {
            if (event.deltaX || event.ctrlKey) return;
            filmstrip.scrollLeft += event.deltaY;
            event.preventDefault();
        }, { passive: false });
        filmstrip.addEventListener("click", ({ target }) => {
            const frame = target.closest(".frame");
            if (frame) this.#choose(Number(frame.dataset.n));
        });
        new ResizeObserver(() => this.#reveal()).observe(filmstrip);
    }

    #refilter() {
        const found = this.#matching();
        if (found.length && !found.includes(this.current)) this.#choose(found[0]);
        else this.go(this.current);
    }

    #list() {       // the current record stays, whether it matches or not
        const found = this.#matching();
        this.#parts.nothing.hidden = found.length > 0;
        this.numbers = found.length ? this.#matching(this.current) : [];
        this.#counts();
    }

    #matching(also = null) {
        const { filter, "filter-class": name, order } = this.#parts;
        const fits = (number) => matches(this.#records[number], filter.value, name.value);
        return this.#orders[order.value].filter((number) => number === also || fits(number));
    }

    #counts() {
        const at = this.numbers.indexOf(this.current);
        const left = this.numbers.filter((number) => isLeft(this.#records[number])).length;
        this.#parts.count.textContent = `${at + 1} of ${this.numbers.length}`;
        this.#parts.remaining.textContent = left ? `${left} to do` : this.numbers.length ? "nothing left to do" : "";
    }

    // frames: only those in sight exist

    #reveal() {
        const { filmstrip } = this.#parts, at = this.numbers.indexOf(this.current);
        this.#measure();
        filmstrip.scrollLeft = (at + 0.5) * this.#width - filmstrip.clientWidth / 2;
        this.#draw();
    }

    #measure() {
        const { filmstrip } = this.#parts;
        this.#width = parseFloat(getComputedStyle(filmstrip).getPropertyValue("--frame")) || 1;
        filmstrip.firstElementChild.style.width = `${this.numbers.length * this.#width}px`;
    }

    #draw() {
        const { filmstrip } = this.#parts;
        const first = Math.max(0, Math.floor(filmstrip.scrollLeft / this.#width) - BESIDE);
        const count = Math.ceil(filmstrip.clientWidth / this.#width) + 2 * BESIDE;
        const wanted = this.numbers.slice(first, first + count);
        for (const [number, frame] of this.#frames) {
            if (wanted.includes(number)) continue;
            frame.remove();
            this.#frames.delete(number);
        }
        wanted.forEach((number, place) => {
            const frame = this.#frames.get(number) ?? this.#frame(number);
            frame.style.transform = `translateX(${(first + place) * this.#width}px)`;
            this.#write(frame, number);
        });
    }

    #frame(number) {
        const frame = document.createElement("button");
        frame.className = "frame";
        frame.dataset.n = number;
        const image = frame.appendChild(document.createElement("img"));
        image.alt = "";
        image.draggable = false;
        image.onerror = () => frame.classList.add("broken");
        setTimeout(() => frame.isConnected && (image.src = `/thumbnail/${number}`), SETTLED);
        frame.appendChild(stateIcon("untouched"));
        this.#frames.set(number, frame);
        this.#parts.filmstrip.firstElementChild.append(frame);
        return frame;
    }

    #write(frame, number) {
        const record = this.#records[number], current = number === this.current;
        const told = [record.id, record.class, STATES[record.state].toLowerCase(), isWrong(record) && "still wrong"];
        frame.title = told.filter(Boolean).join(" · ");
        frame.setAttribute("aria-label", frame.title);
        frame.tabIndex = current ? 0 : -1;
        frame.toggleAttribute("aria-current", current);
        frame.classList.toggle("wrong", isWrong(record));
        setState(frame.lastElementChild, record.state);
    }
}

/** Return the sign of a state, by shape and by colour. */
function stateIcon(state) {
    const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    icon.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "use"));
    setState(icon, state);
    return icon;
}

export function setState(icon, state) {
    if (icon.dataset.state === state) return;
    icon.dataset.state = state;
    icon.setAttribute("class", "state");
    icon.firstElementChild.setAttribute("href", `#state-${state}`);
}
