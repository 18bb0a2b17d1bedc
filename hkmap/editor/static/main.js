// The page: a record at a time under the brush, and what joins the canvas, the editor behind it and the controls.

import { Answers } from "./answers.js";
import { COLOURS } from "./colours.js";
import { Connection, replayed } from "./connection.js";
import { Controls } from "./controls.js";
import { Filmstrip, setState, STATES } from "./filmstrip.js";
import { Images } from "./images.js";
import { listen, writeSheet, writeTitles } from "./keys.js";
import { decode, Painting } from "./layer.js";
import { askDone, close, showHints, tell, tellAbsent, tellSaved } from "./notices.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

const STARTS = { attention: "Predicted", map: "Human", empty: "Empty" };
const ZOOM = 1.25;

const part = (id) => document.getElementById(id);

class Page {
    painting = null;            // of the open record; null until the editor has told it
    connection = null;
    #listing;                   // records.json
    #number = null;
    #opened = null;
    #image = null;
    #missing = false;           // whether the image is to be asked for again
    #images = new Images();
    #drawing = false;

    constructor(listing) {
        this.#listing = listing;
        this.records = listing.records;
        this.records.forEach((record) => record.class ??= listing.classes[record.label] || null);
        this.view = new View(part("canvas"));
        this.controls = new Controls((names) => this.#controlled(names));
        this.tools = new Tools(this.view, this.controls.brush, {
            begin: (stroke) => this.#begin(stroke), move: (points) => this.#move(points),
            end: (stroke) => this.#end(stroke), cancel: () => this.#cancel(),
            changed: ({ radius }) => this.controls.set({ radius }),
        });
        this.answers = new Answers(part("answers"));
        this.filmstrip = new Filmstrip(listing, (number) => this.go(number));
        part("network").hidden = !listing.network;
        this.connection = new Connection({
            opened: (message, waiting, conflict) => this.#take(message, waiting, conflict),
            answer: (top) => this.answers.show(top, this.record.label),
            kept: (number, top) => this.#learn(number, { now: top[0]?.label ?? null }),
            known: ({ n, prediction, confidence, now }) => this.#learn(n, { prediction, confidence, now }),
            saved: ({ n, state }, more) => more || this.#learn(n, { state }),
            trouble: (message, opening) => this.#trouble(message, opening),
            status: () => this.connection && tellSaved(this.connection),
            done: (message) => close(message.waiting_for ?? []),
        });
        this.#controlled(["colours"]);
        this.#wire();
        this.go(this.#first());
    }

    get record() {
        return this.records[this.#number];
    }

    // from record to record

    #first() {
        const { at, orders, order } = this.#listing;
        const hashed = Number(/^#n=(\d+)$/.exec(location.hash)?.[1] ?? NaN);
        return [hashed, at, orders?.[order]?.[0], 0].find((number) => number in this.records);
    }

    go(number) {
        if (number === null || number === this.#number || this.#drawing) return;
        this.tools.cancel();
        this.#number = number;
        this.painting = this.#opened = this.#image = null;
        this.view.show(null, null, { frame: [1, 1] });
        history.replaceState(null, "", `#n=${number}`);
        document.title = `${this.record.id} · ${this.#listing.title ?? "hkmap edit"}`;
        part("id").textContent = this.record.id;
        part("class").textContent = this.record.class ?? "";
        tellAbsent("");
        this.answers.show([], -1);
        this.filmstrip.go(number);
        this.connection.open(number);
        this.#fetchImage(number);
        this.#show();
    }

    async #fetchImage(number) {
        const image = await this.#images.get(number).catch((error) => error);
        if (number !== this.#number) return;
        this.#missing = image instanceof TypeError;         // nobody answers
        if (image instanceof ImageBitmap) this.#image = image;
        else if (!this.#missing) tellAbsent(image.message);
        this.#lay();
        const next = this.filmstrip.neighbour(1);
        if (next !== null) this.#images.get(next).catch(() => {});
    }

    /** Take what the editor tells of a record, and what it does not know of it yet. */
    #take(message, waiting, conflict) {
        const { strokes, undone } = replayed(message, waiting);
        if (!waiting.length) this.#learn(message.n, { state: message.state });
        if (message.n !== this.#number) return;
        if (conflict) tell("This record was changed in another window: that is what you see now.");
        if (this.#missing) this.#fetchImage(message.n);
        const known = this.#opened;
        this.#opened = message;
        if (known?.start === message.start && same(this.painting, strokes, undone)) return;
        this.tools.cancel();
        const { size, layer, frame, map, certainty } = message;
        this.painting = new Painting({
            size, layer, frame, map: decode(map), certainty: certainty && decode(certainty),
        });
        this.painting.load(strokes, undone);
        if (!known) this.controls.fit(frame);
        this.#lay(known !== null);
    }

    /** Lay the painting on the image, once both are here. */
    #lay(keep = false) {
        if (this.#ready) this.view.show(this.#image, this.painting, { frame: this.#opened.frame, keep });
        this.#show();
    }

    #trouble({ n, what, text }, opening) {
        if (n === this.#number && what === "record" && (opening || !this.#image)) tellAbsent(text);
        else tell(text);
    }

    #learn(number, facts) {
        Object.assign(this.records[number], facts);
        this.filmstrip.refresh(number);
        if (number === this.#number) this.#show();
    }

    // strokes

    get #ready() {
        return Boolean(this.painting && this.#image);
    }

    #begin(stroke) {
        if (!this.#ready) return;
        this.#drawing = true;
        this.view.redraw(this.painting.begin(stroke));
        this.connection.begin(stroke);
    }

    #move(points) {
        if (!this.#drawing) return;
        this.view.redraw(this.painting.move(points));
        this.connection.move(points);
    }

    #end(stroke) {
        if (!this.#ready) return;
        if (!this.#drawing) return this.#paint(stroke);     // a polygon comes whole
        this.#drawing = false;
        this.#changed({ do: "paint", stroke: this.painting.end() });
    }

    #cancel() {
        if (!this.#drawing) return;
        this.#drawing = false;
        this.painting.cancel();
        this.view.redraw();
        this.connection.cancel();
    }

    #paint(stroke) {
        if (this.#drawing || !this.#ready) return;
        this.painting.apply(stroke);
        this.view.redraw();
        this.#changed({ do: "paint", stroke });
    }

    #changed(change, state = "edited") {
        this.connection.change(change);
        this.#learn(this.#number, { state });
    }

    #step(name) {
        if (this.#drawing || !this.#ready || !this.painting[name]()) return;
        this.view.redraw();
        this.#changed({ do: name });
    }

    #reset() {
        if (this.#drawing || !this.#ready || !this.painting.strokes.length) return;
        const count = this.painting.strokes.length, number = this.#number;
        this.painting.reset();
        this.view.redraw();
        this.#changed({ do: "reset" });
        tell(count > 1 ? `${count} strokes taken back.` : "1 stroke taken back.", "Bring back", () => {
            if (number === this.#number) for (let nth = 0; nth < count; nth++) this.#step("redo");
        });
    }

    #start(start) {
        if (!this.#opened?.starts.includes(start) || start === this.#opened.start) return;
        this.#opened.start = null;          // the editor tells the map
        this.#changed({ do: "start", start });
    }

    #confirm() {
        if (!this.#ready || this.#drawing) return;
        if (this.record.state !== "confirmed") this.#changed({ do: "mark", state: "confirmed" }, "confirmed");
        this.#goOn();
    }

    #skip() {
        if (this.#drawing) return;
        if (this.record.state !== "skipped") this.#changed({ do: "mark", state: "skipped" }, "skipped");
        this.#goOn();
    }

    #goOn() {
        const next = this.filmstrip.nextLeft();
        if (next === null) tell("Nothing is left to do here.", "Done", () => this.#done());
        else this.go(next);
    }

    #done() {
        askDone(this.records, () => this.connection.finish());
    }

    /** A click on the mark that a record has takes it back. */
    #mark(state, act) {
        if (this.record.state === state) this.#changed({ do: "mark", state: "edited" });
        else act();
    }

    // what is seen

    #controlled(names) {
        if (!this.tools) return;            // while they are built
        const { display } = this.controls;
        if (names.some((name) => name in display)) this.view.set(display);
        if (names.includes("colours")) drawScale(part("scale"), display.colours);
        this.tools.show();
    }

    #show() {
        const { state } = this.record, painting = this.#ready ? this.painting : null;
        setState(part("state"), state);
        part("state").ariaLabel = STATES[state];
        for (const id of ["undo", "reset"]) part(id).disabled = !painting?.strokes.length;
        part("redo").disabled = !painting?.undone.length;
        for (const id of ["fill", "invert", "confirm"]) part(id).disabled = !painting;
        for (const [id, mark, name] of [["confirm", "confirmed", "Confirm"], ["skip", "skipped", "Skip"]]) {
            part(id).textContent = state === mark ? STATES[mark] : name;
            part(id).ariaPressed = String(state === mark);
        }
        part("previous").disabled = this.filmstrip.neighbour(-1) === null;
        part("next").disabled = this.filmstrip.neighbour(1) === null;
        this.#showStarts();
    }

    #showStarts() {
        const menu = part("start"), starts = this.#opened?.starts ?? [];
        menu.disabled = starts.length < 2;
        if ([...menu.options].map((option) => option.value).join() !== starts.join()) {
            menu.replaceChildren(...starts.map((start) => new Option(STARTS[start], start)));
        }
        if (this.#opened?.start) menu.value = this.#opened.start;
    }

    // what a person does

    #wire() {
        const actions = this.#actions();
        listen(actions);
        writeSheet(part("keys"));
        writeTitles();
        for (const id of ["previous", "next", "undo", "redo", "reset", "fill", "invert", "help", "done"]) {
            part(id).onclick = () => actions[id]();
        }
        for (const button of document.querySelectorAll("[data-action]")) {
            button.onclick = () => actions[button.dataset.action]();
        }
        part("confirm").onclick = () => this.#mark("confirmed", actions.confirm);
        part("skip").onclick = () => this.#mark("skipped", actions.skip);
        part("start").onchange = () => this.#start(part("start").value);
        part("nothing").lastElementChild.onclick = () => this.filmstrip.showAll();
        addEventListener("hashchange", () => this.go(this.#first()));
        showHints();
        returnFocus();
    }

    #actions() {
        const { controls, filmstrip, view } = this;
        const whole = (tool) => this.#paint({ tool, strength: controls.brush.strength });
        return {
            next: () => this.go(filmstrip.neighbour(1)), previous: () => this.go(filmstrip.neighbour(-1)),
            first: () => this.go(filmstrip.numbers[0] ?? null), last: () => this.go(filmstrip.numbers.at(-1) ?? null),
            confirm: () => this.#confirm(), skip: () => this.#skip(), done: () => this.#done(),
            undo: () => this.#step("undo"), redo: () => this.#step("redo"), reset: () => this.#reset(),
            fill: () => whole(controls.brush.tool), invert: () => whole("invert"),
            escape: () => this.tools.cancel(), start: (start) => this.#start(start),
            tool: (tool) => controls.set({ tool }), shape: (shape) => controls.set({ shape }),
            radius: (step) => controls.step("radius", step), strength: (step) => controls.step("strength", step),
            softness: (step) => controls.step("softness", step), opacity: (step) => controls.step("opacity", step),
            peek: (held) => this.#peek(held), colours: () => controls.nextColours(),
            stretch: () => controls.toggle("stretch"), cells: () => controls.toggle("cells"),
            zoomIn: () => view.zoom(ZOOM), zoomOut: () => view.zoom(1 / ZOOM), fit: () => view.fit(),
            help: () => part("sheet").showModal(),
        };
    }

    #peek(held) {
        this.view.set({ hidden: held });
        this.tools.space = held;
    }
}

/** Give the focus back to the image after a click on a control, so that Enter and Space are what the help says. */
function returnFocus() {
    let pointing = false;
    addEventListener("pointerdown", () => pointing = true, true);
    addEventListener("keydown", () => pointing = false, true);
    const back = ({ target }) => {
        if (pointing && target.closest("button, input, select") && !target.closest("dialog")) part("canvas").focus();
    };
    addEventListener("click", (event) => event.target.matches("select, input") || back(event));
    addEventListener("change", back);
}

/** Draw the colours from 0 to 1. */
function drawScale(canvas, name) {
    const context = canvas.getContext("2d"), pixels = context.createImageData(256, 1);
    for (let at = 0; at < 256; at++) pixels.data.set([...COLOURS[name].subarray(3 * at, 3 * at + 3), 255], 4 * at);
    context.putImageData(pixels, 0, 0);
}

/** Return whether a painting has these strokes; what the editor wrote may differ in form. */
function same(painting, strokes, undone) {
    const alike = (some, others) => some.length === others.length
        && JSON.stringify(some.at(-1)?.points) === JSON.stringify(others.at(-1)?.points);
    return painting !== null && alike(painting.strokes, strokes) && alike(painting.undone, undone);
}

async function begin() {
    const response = await fetch("/records.json");
    if (!response.ok) throw new Error(await response.text());
    window.editor = new Page(await response.json());
}

begin().catch((error) => {
    tellAbsent(`The editor cannot be shown: ${error.message}`);
    throw error;
});
