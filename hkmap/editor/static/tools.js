// What mouse, pen and fingers do over the view: they paint, set corners, size the brush, zoom and pan.

const MOST_POINTS = 5000;       // of a stroke; a longer one goes on as the next
const NEAR = 9;                 // pixels of the screen, from a click to the first corner that closes an outline
const TAP = { travel: 12, time: 300 };      // of two fingers, in pixels of the screen and milliseconds
const OPPOSITE = { add: "remove", remove: "remove", unknown: "known", known: "unknown" };
const LINE = 33;                // pixels of a wheel's line
const ERASER = 32;              // among a pen's buttons
const MOVE = "onpointerrawupdate" in window ? "pointerrawupdate" : "pointermove";       // the first waits for no frame

export class Tools {
    /**
     * @param {{tool: string, shape: "brush"|"polygon", radius: number, strength: number, softness: number}} settings
     *     the page's own, which may change at any time
     * @param {object} listener {begin(stroke), move(points), end(stroke), cancel(), changed(settings)}
     */
    constructor(view, settings, listener) {
        Object.assign(this, { view, settings, listener });
        this.panning = false;               // whether a drag pans
        this.turned = 0;                    // of the wheel, in notches, not yet used
        this.stroke = null;                 // under way
        this.corners = null;                // of an outline under way: {tool, points}
        this.fingers = new Map();           // on the screen, by their ids
        this.dragged = null;                // the pointer that pans, and where it was
        view.element.style.touchAction = "none";
        this.listen();
    }

    /** Whether Space is held, so that a drag pans. */
    set space(held) {
        this.panning = held;
        this.show();
    }

    /** Give up what is under way. */
    cancel() {
        const begun = this.stroke && !this.stroke.waiting;
        this.stroke = null;
        if (begun) this.listener.cancel();
        this.dropCorners();
    }

    /** Close the outline under way, if it has an inside. */
    close() {
        if (!(this.corners?.points.length > 2)) return;
        const { tool, points } = this.corners;
        this.dropCorners();
        this.listener.end({ tool, points, outline: true, strength: this.settings.strength });
    }

    /** Take the last corner of the outline under way back. */
    back() {
        this.corners?.points.pop();
        if (!this.corners?.points.length) this.dropCorners();
        this.show();
    }

    // events

    listen() {
        const { element } = this.view;
        const on = (name, action) => element.addEventListener(name, action, { passive: false });
        on("pointerdown", (event) => this.down(event));
        on(MOVE, (event) => this.moved(event));
        on("pointerup", (event) => this.up(event));
        on("pointercancel", (event) => this.lost(event));
        on("lostpointercapture", (event) => this.lost(event));
        on("pointerleave", () => {
            this.hovered = null;
            this.show();
        });
        on("wheel", (event) => this.wheel(event));
        on("contextmenu", (event) => event.preventDefault());
        on("mousedown", (event) => event.button === 1 && event.preventDefault());       // no scrolling by itself
        on("dblclick", () => this.close());
        addEventListener("keydown", (event) => this.key(event), true);
    }

    /** While an outline is under way these keys are of it, whatever else they are of. */
    key(event) {
        const action = { Enter: "close", Backspace: "back", Escape: "cancel" }[event.key];
        if (this.corners && action && !event.target.closest?.("input, select, textarea, dialog")) {
            event.preventDefault();
            event.stopImmediatePropagation();
            this[action]();
        }
    }

    down(event) {
        if (event.pointerType === "pen" && this.fingers.size) this.forgetFingers();
        if ((event.pointerType === "touch" && !this.touch(event)) || this.stroke || this.dragged) {
            return;
        }
        this.view.element.setPointerCapture(event.pointerId);
        this.hover(event);
        if (this.panning || event.button === 1) {
            this.dragged = { id: event.pointerId, x: event.clientX, y: event.clientY };
        } else if (this.view.painting) {
            this[this.settings.shape === "polygon" ? "corner" : "begin"](event);
        }
        this.show();
    }

    moved(event) {
        this.hover(event);
        if (this.fingers.has(event.pointerId)) {
            this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
        }
        if (this.pinched) {
            this.pinch();
        } else if (this.dragged?.id === event.pointerId) {
            this.view.pan(event.clientX - this.dragged.x, event.clientY - this.dragged.y);
            Object.assign(this.dragged, { x: event.clientX, y: event.clientY });
        } else if (this.stroke?.id === event.pointerId) {
            this.draw(event);
        }
        this.show();
    }

    up(event) {
        if (this.stroke?.id === event.pointerId) this.finish(event);
        this.release(event);
    }

    /** A pointer that the system took away gives its stroke up. */
    lost(event) {
        if (this.stroke?.id === event.pointerId) this.cancel();
        this.release(event);
    }

    release(event) {
        this.fingers.delete(event.pointerId);
        if (this.dragged?.id === event.pointerId) this.dragged = null;
        if (this.pinched && !this.fingers.size) {
            const { travel, since } = this.pinched;
            this.pinched = null;
            if (travel < TAP.travel && event.timeStamp - since < TAP.time) this.view.fit();
        }
        if (event.pointerType === "touch") this.hovered = null;
        else if (this.hovered) this.hovered.erases = erases({ buttons: event.buttons, ctrlKey: event.ctrlKey });
        this.show();
    }

    wheel(event) {
        event.preventDefault();
        if (this.stroke) return;
        const pixels = (event.deltaY || event.deltaX) * (event.deltaMode ? LINE : 1);
        const notches = Math.max(-1, Math.min(1, pixels / 100));
        if (event.ctrlKey || event.altKey) {
            const pinched = Math.abs(pixels) < 50;          // two fingers on a touchpad, in many small steps
            this.view.zoom(Math.exp(-notches * (pinched ? 1 : 0.2)), event.clientX, event.clientY);
            this.show();
        } else {
            this.size(notches);
        }
    }

    /** Size the brush by the wheel, from half a pixel to the whole image. */
    size(notches) {
        this.turned += notches;
        if (Math.abs(this.turned) < 0.25) return;
        const { radius } = this.settings, most = Math.max(...this.view.frame);
        const wanted = tenth(radius * Math.exp(-0.15 * this.turned));
        const changed = wanted === tenth(radius) ? radius - 0.1 * Math.sign(this.turned) : wanted;
        this.settings.radius = tenth(Math.min(most, Math.max(0.5, changed)));
        this.turned = 0;
        this.listener.changed(this.settings);
        this.show();
    }

    // a brush stroke

    begin(event) {
        const { radius, strength, softness } = this.settings;
        const stroke = { tool: this.toolOf(event), strength, points: [], radius: tenth(radius), softness };
        const waiting = event.pointerType === "pen" && event.pressure > 0 ? { pressure: 0, seen: 0 } : null;
        this.stroke = { id: event.pointerId, stroke, waiting, travel: 0, from: event };
        this.draw(event);
    }

    draw(event) {
        const coalesced = event.type === MOVE ? event.getCoalescedEvents?.() ?? [] : [];
        const events = coalesced.length ? coalesced : [event], { stroke, waiting } = this.stroke;
        this.stroke.travel = Math.max(this.stroke.travel, travelled(this.stroke.from, event));
        if (waiting) {
            waiting.pressure = Math.max(waiting.pressure, ...events.map((one) => one.pressure));
            waiting.seen += events.length;
        }
        const apart = Math.max(stroke.radius / 8, this.view.grain);
        this.add(events.map((one) => this.place(one)), apart);
        if (waiting && waiting.seen > 3) this.settle();
    }

    /** Add points that are at least so far apart. */
    add(places, apart) {
        const points = [];
        let last = this.stroke.stroke.points.at(-1);
        for (const place of places) {
            if (!last || Math.hypot(place[0] - last[0], place[1] - last[1]) >= apart) {
                points.push(place);
                last = place;
            }
        }
        if (points.length) this.pass(points);
    }

    /** Tell the next points; a stroke that is full goes on as another from its last point. */
    pass(points) {
        const { stroke, waiting } = this.stroke, first = !stroke.points.length;
        const fitting = points.slice(0, MOST_POINTS - stroke.points.length);
        stroke.points.push(...fitting);
        if (waiting) return;
        if (first) {
            this.listener.begin({ ...stroke, points: fitting });
        } else {
            this.listener.move(fitting);
        }
        if (stroke.points.length === MOST_POINTS) {
            this.listener.end(stroke);
            this.stroke.stroke = { ...stroke, points: [] };
            this.pass([stroke.points.at(-1), ...points.slice(fitting.length)]);
        }
    }

    /** A pen's pressure at the beginning is the stroke's strength: half of it is all. */
    settle() {
        const { stroke, waiting } = this.stroke, points = stroke.points;
        stroke.strength = Math.round(100 * stroke.strength * Math.min(1, Math.max(0.1, 2 * waiting.pressure))) / 100;
        stroke.points = [];
        this.stroke.waiting = null;
        this.pass(points);
    }

    finish(event) {
        this.add([this.place(event)], 0.1);
        if (this.stroke.waiting) this.settle();
        const { stroke } = this.stroke;
        this.stroke = null;
        this.listener.end(stroke);
    }

    // an outline

    corner(event) {
        const place = this.place(event), { points } = this.corners ?? { points: [] };
        const near = (other, pixels) => other &&
            Math.hypot(place[0] - other[0], place[1] - other[1]) * this.view.scale < pixels;
        if (points.length > 2 && near(points[0], event.pointerType === "touch" ? 2 * NEAR : NEAR)) {
            this.close();
        } else if (!near(points.at(-1), 3)) {           // a double click is one corner
            this.corners ??= { tool: this.toolOf(event), points };
            points.push(place);
        }
    }

    dropCorners() {
        this.corners = null;
        this.view.outline(null);
    }

    // fingers

    /** Count a finger; → whether it may paint. A second one zooms, unless the first has painted for a while. */
    touch(event) {
        if (this.stroke?.travel > 2 * TAP.travel || (this.stroke && !this.fingers.size)) {
            return false;                           // a palm beside a pen or a finger
        }
        this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
        if (this.fingers.size === 1) return true;
        if (this.stroke) {
            this.cancel();
        } else if (this.corners && !this.pinched) {
            this.back();
        }
        this.dragged = null;
        this.pinched = { ...this.spread(), travel: 0, since: this.pinched?.since ?? event.timeStamp };
        return false;
    }

    forgetFingers() {
        this.cancel();
        this.fingers.clear();
        this.pinched = this.dragged = null;
    }

    /** The middle of two fingers, and how far they are apart. */
    spread() {
        const [one, other = one] = this.fingers.values();
        const apart = Math.max(1, Math.hypot(one.x - other.x, one.y - other.y));
        return { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2, apart };
    }

    pinch() {
        const last = this.pinched;
        if (this.fingers.size < 2) return;
        const now = this.spread();
        this.view.pan(now.x - last.x, now.y - last.y);
        this.view.zoom(now.apart / last.apart, now.x, now.y);
        const travel = Math.hypot(now.x - last.x, now.y - last.y) + Math.abs(now.apart - last.apart);
        this.pinched = { ...now, travel: last.travel + travel, since: last.since };
    }

    // what is seen of it

    toolOf(event) {
        return this.toolWhere(erases(event));
    }

    toolWhere(erasing) {
        return erasing ? OPPOSITE[this.settings.tool] : this.settings.tool;
    }

    /** A pointer's place in the image, to a tenth of a pixel, at most a radius beside it. */
    place(event) {
        const beside = this.settings.shape === "polygon" ? 0 : this.settings.radius;
        return this.view.toImage(event.clientX, event.clientY).map(
            (one, axis) => tenth(Math.max(-beside, Math.min(this.view.frame[axis] + beside, one))),
        );
    }

    hover(event) {
        this.hovered = { clientX: event.clientX, clientY: event.clientY, erases: erases(event) };
    }

    show() {
        const { view, hovered, settings } = this, polygon = settings.shape === "polygon";
        const paints = !this.panning && !this.dragged && !this.pinched && view.painting;
        const [x, y] = hovered ? view.toImage(hovered.clientX, hovered.clientY) : [0, 0];
        const mode = this.stroke?.stroke.tool ?? this.toolWhere(hovered?.erases);
        const brush = { x, y, radius: settings.radius, softness: settings.softness, mode };
        view.cursor(hovered && paints && !polygon ? brush : null);
        if (this.corners && !polygon) {
            this.dropCorners();
        } else if (this.corners) {
            view.outline(hovered ? [...this.corners.points, [x, y]] : this.corners.points);
        }
        view.element.style.cursor = this.dragged ? "grabbing" : this.panning ? "grab" : pointerOf(paints, polygon);
    }
}

/** Return whether a button, a key or the other end of a pen asks for the opposite of the tool. */
function erases({ button, buttons, ctrlKey }) {
    return button === 2 || Boolean(buttons & (2 | ERASER)) || ctrlKey;
}

function pointerOf(paints, polygon) {
    return paints ? (polygon ? "crosshair" : "none") : "";
}

function tenth(value) {
    return Math.round(value * 10) / 10;
}

function travelled(from, to) {
    return Math.hypot(to.clientX - from.clientX, to.clientY - from.clientY);
}
