// An image under its map: three canvases, one over the other, each drawn at most once per frame and only where it must.

import { COLOURS } from "./colours.js";
import { union } from "./layer.js";

const MARGIN = 12;              // around a fitted image, in pixels of the screen
const LARGEST = 64;             // pixels of the screen per pixel of the image
const CRISP = 4;                // from here on the image's pixels are shown as squares
const STRIPES = 30;             // of the hatching across the longer side of the image

export class View {
    constructor(element) {
        this.element = element;
        this.settings = { opacity: 0.5, colours: "viridis", stretch: false, cells: false, hidden: false };
        this.image = this.painting = this.brush = this.corners = null;
        this.frame = [1, 1];
        this.x = this.y = 0;                    // of the image's corner in the element
        this.scale = 1;                         // pixels of the screen per pixel of the image
        this.fitted = true;
        this.stale = {};
        this.requested = false;
        this.layer = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        [this.under, this.over, this.top] = ["image", "map", "pointer"].map((name) => addCanvas(element, name));
        this.set({});
        new ResizeObserver(() => this.resize()).observe(element);
        this.resize();
    }

    // what is shown

    /** Show an image under a painting (each may be null); with keep, where the last one was and not fitted. */
    show(image, painting, { frame, keep = false }) {
        Object.assign(this, { image, painting, frame });
        this.stale.layer = null;                // that of the last painting
        if (painting) {
            const [height, width] = painting.layer;
            [this.layer.canvas.width, this.layer.canvas.height] = [width, height];
            this.pixels = new ImageData(width, height);
            this.words = new Uint32Array(this.pixels.data.buffer);
            this.range = rangeOf(painting.map);
        }
        if (!keep) this.fit();
        this.place();
        this.redraw();
    }

    /** Draw a rectangle [x0, y0, x1, y1] of the layer anew, or everything; null is nothing. */
    redraw(dirty) {
        if (dirty === null || !this.painting) return this.request(dirty === null ? null : "map");
        const [height, width] = this.painting.layer;
        this.stale.layer = union(this.stale.layer, dirty ?? [0, 0, width, height]);
        return this.request(dirty ? null : "map");
    }

    set(settings) {
        Object.assign(this.settings, settings);
        const { opacity, hidden } = this.settings;
        this.over.canvas.style.opacity = opacity;
        this.over.canvas.style.visibility = hidden ? "hidden" : "visible";
        if (["colours", "stretch", "cells"].some((name) => name in settings)) this.redraw();
    }

    /** Show the brush at a place of the image: {x, y, radius, softness, mode}; null shows none. */
    cursor(brush) {
        this.brush = brush;
        this.request("pointer");
    }

    /** Show an outline under way by its corners; null shows none. */
    outline(points) {
        this.corners = points?.length ? points : null;
        this.request("pointer");
    }

    // where it is shown

    /** Pixels of the image per pixel of the layer. */
    get grain() {
        const [height, width] = this.painting?.layer ?? [this.frame[1], this.frame[0]];
        return Math.max(this.frame[0] / width, this.frame[1] / height);
    }

    toImage(clientX, clientY) {
        const box = this.element.getBoundingClientRect();
        return [
            (clientX - box.left - this.element.clientLeft - this.x) / this.scale,
            (clientY - box.top - this.element.clientTop - this.y) / this.scale,
        ];
    }

    /** Zoom about a place of the screen, or about the middle. */
    zoom(factor, clientX, clientY) {
        const box = this.element.getBoundingClientRect();
        const x = (clientX ?? box.left + box.width / 2) - box.left, y = (clientY ?? box.top + box.height / 2) - box.top;
        const least = Math.min(1, this.fitting()) / 2;
        const scale = Math.min(LARGEST, Math.max(least, this.scale * factor)), change = scale / this.scale;
        this.x = x + (this.x - x) * change;
        this.y = y + (this.y - y) * change;
        this.scale = scale;
        this.fitted = false;
        this.place();
    }

    pan(dx, dy) {
        this.x += dx;
        this.y += dy;
        this.fitted = false;
        this.place();
    }

    fit() {
        this.scale = this.fitting();
        this.x = (this.element.clientWidth - this.frame[0] * this.scale) / 2;
        this.y = (this.element.clientHeight - this.frame[1] * this.scale) / 2;
        this.fitted = true;
        this.place();
    }

    // the inside

    fitting() {
        const across = (this.element.clientWidth - 2 * MARGIN) / this.frame[0];
        const down = (this.element.clientHeight - 2 * MARGIN) / this.frame[1];
        return Math.max(1e-3, Math.min(LARGEST, across, down));
    }

    /** Keep some of the image in sight, and draw all at its new place. */
    place() {
        const { clientWidth, clientHeight } = this.element;
        const margin = Math.min(60, clientWidth / 4, clientHeight / 4);
        this.x = Math.min(clientWidth - margin, Math.max(margin - this.frame[0] * this.scale, this.x));
        this.y = Math.min(clientHeight - margin, Math.max(margin - this.frame[1] * this.scale, this.y));
        ["image", "map", "pointer"].forEach((what) => this.request(what));
    }

    resize() {
        this.dense = window.devicePixelRatio;
        for (const { canvas } of [this.under, this.over, this.top]) {
            canvas.width = Math.max(1, Math.round(this.element.clientWidth * this.dense));
            canvas.height = Math.max(1, Math.round(this.element.clientHeight * this.dense));
        }
        if (this.fitted) this.fit();
        this.place();
        this.draw();                    // now: a canvas of another size is empty
    }

    request(what) {
        if (what) this.stale[what] = true;
        if (!this.requested) {
            this.requested = true;
            requestAnimationFrame(() => {
                this.requested = false;
                this.draw();
            });
        }
    }

    draw() {
        const { image, map, layer, pointer } = this.stale;
        this.stale = {};
        if (image) this.drawImage();
        const painted = layer && this.paint(layer);
        if (map || painted) this.drawMap(map ? null : painted);
        if (pointer) drawPointer(this.top, this);
    }

    /** The frame's corner and size in pixels of the canvases. */
    box() {
        return [this.x, this.y, this.frame[0] * this.scale, this.frame[1] * this.scale].map((one) => one * this.dense);
    }

    drawImage() {
        const context = this.under;
        context.clearRect(0, 0, context.canvas.width, context.canvas.height);
        if (this.image) {
            context.imageSmoothingEnabled = this.scale * this.dense < CRISP;
            context.imageSmoothingQuality = this.scale * this.dense < 0.5 ? "medium" : "low";
            context.drawImage(this.image, ...this.box());
        }
    }

    /** Draw the layer where it lies over a rectangle of it, or all of it. */
    drawMap(rectangle) {
        const context = this.over, { width, height } = context.canvas;
        const [x, y, across, down] = this.box();
        context.save();
        if (rectangle) {
            const [tall, wide] = this.painting.layer, [x0, y0, x1, y1] = rectangle;     // and a pixel more: they blend
            const left = Math.floor(x + (x0 - 1) * across / wide), top = Math.floor(y + (y0 - 1) * down / tall);
            const right = Math.ceil(x + (x1 + 1) * across / wide), bottom = Math.ceil(y + (y1 + 1) * down / tall);
            context.beginPath();
            context.rect(left, top, right - left, bottom - top);
            context.clip();
        }
        context.clearRect(0, 0, width, height);
        if (this.painting) {
            context.imageSmoothingEnabled = !this.settings.cells;
            context.drawImage(this.layer.canvas, x, y, across, down);
        }
        context.restore();
    }

    /** Colour a rectangle of the layer; → what was coloured, which is whole cells where cells are shown. */
    paint(rectangle) {
        const { painting, settings } = this, [height, width] = painting.layer;
        const [x0, y0, x1, y1] = settings.cells ? wholeCells(rectangle, painting) : rectangle;
        const [low, high] = settings.stretch ? this.range : [0, 1], gain = 255 / (high - low);
        const colours = coloursOf(settings.colours), period = Math.max(...this.frame) / STRIPES;
        const [across, down] = [this.frame[0] / width / period, this.frame[1] / height / period];
        const look = settings.cells ? cellsOf(painting) : painting;
        for (let y = y0; y < y1; y++) {
            for (let x = x0; x < x1; x++) {
                const level = Math.min(255, Math.max(0, Math.round((look.value(x, y) - low) * gain)));
                const known = look.known(x, y), colour = colours[level];
                this.words[y * width + x] = known < 1 ? hatched(colour, known, (x * across + y * down) % 1) : colour;
            }
        }
        this.layer.putImageData(this.pixels, 0, 0, x0, y0, x1 - x0, y1 - y0);
        return [x0, y0, x1, y1];
    }
}

function addCanvas(element, name) {
    const canvas = document.createElement("canvas");
    canvas.dataset.of = name;
    const whole = { position: "absolute", inset: "0", width: "100%", height: "100%", pointerEvents: "none" };
    Object.assign(canvas.style, whole);
    element.append(canvas);
    return canvas.getContext("2d");
}

/** The lowest and the highest value of a map; 0 and 1 where they are the same. */
function rangeOf(map) {
    const low = map.reduce((one, other) => Math.min(one, other));
    const high = map.reduce((one, other) => Math.max(one, other));
    return low < high ? [low, high] : [0, 1];
}

/** 256 colours as words of an image's data; "grey" is black that lets the more of the image through, the brighter. */
function coloursOf(name) {
    const bytes = new Uint8ClampedArray(1024), table = COLOURS[name];
    for (let level = 0; level < 256; level++) {
        const light = name === "grey";
        bytes.set(light ? [0, 0, 0, 255 - level] : [...table.subarray(3 * level, 3 * level + 3), 255], 4 * level);
    }
    return new Uint32Array(bytes.buffer);
}

/** A colour as far as it is known; beyond, white and black stripes on the bare image. */
function hatched(colour, known, phase) {
    const least = Math.max(0, known), unknown = 1 - least, alpha = colour >>> 24;
    if (phase >= 0.4) return (colour & 0xffffff | Math.round(alpha * least) << 24) >>> 0;
    const stripe = phase < 0.2 ? 255 : 0;
    const mixed = (shift) => Math.round((colour >>> shift & 255) * least + stripe * unknown) << shift;
    return (mixed(0) | mixed(8) | mixed(16) | Math.round(alpha * least + 255 * unknown) << 24) >>> 0;
}

function wholeCells([x0, y0, x1, y1], { size, layer }) {
    const [tall, wide] = [layer[0] / size[0], layer[1] / size[1]];
    const from = [Math.floor(x0 / wide) * wide, Math.floor(y0 / tall) * tall];
    return [...from, Math.ceil(x1 / wide) * wide, Math.ceil(y1 / tall) * tall];
}

/** What a network is given: the cells, on the pixels of the layer. */
function cellsOf(painting) {
    const { map, certainty } = painting.cells(), { size, layer } = painting;
    const [tall, wide] = [layer[0] / size[0], layer[1] / size[1]];
    const at = (x, y) => Math.floor(y / tall) * size[1] + Math.floor(x / wide);
    return { value: (x, y) => map[at(x, y)], known: (x, y) => (certainty ? certainty[at(x, y)] : 1) };
}

// the pointer

function drawPointer(context, view) {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    context.scale(view.dense, view.dense);
    const onScreen = ([x, y]) => [view.x + x * view.scale, view.y + y * view.scale];
    if (view.corners) drawOutline(context, view.corners.map(onScreen));
    if (view.brush) {
        const { x, y, radius, softness, mode } = view.brush;
        drawBrush(context, onScreen([x, y]), Math.max(2, radius * view.scale), softness, mode);
    }
}

/** Stroke a path so that it is seen on light and dark. */
function strokeTwice(context, path) {
    for (const [colour, width] of [["rgba(0, 0, 0, 0.75)", 3.5], ["white", 1.5]]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.stroke(path);
    }
}

function drawOutline(context, corners) {
    const sides = new Path2D(), closing = new Path2D(), marks = new Path2D();
    corners.forEach(([x, y], nth) => {
        sides[nth ? "lineTo" : "moveTo"](x, y);
        const radius = nth ? 2 : 6;             // a click on the first closes the outline
        marks.moveTo(x + radius, y);
        marks.arc(x, y, radius, 0, 2 * Math.PI);
    });
    closing.moveTo(...corners.at(-1));
    closing.lineTo(...corners[0]);
    context.setLineDash([5, 5]);
    strokeTwice(context, closing);
    context.setLineDash([]);
    strokeTwice(context, sides);
    strokeTwice(context, marks);
}

function drawBrush(context, [x, y], radius, softness, mode) {
    const rim = new Path2D(), core = new Path2D();
    rim.arc(x, y, radius, 0, 2 * Math.PI);
    strokeTwice(context, rim);
    if (softness > 0 && softness < 1 && radius > 12) {
        core.arc(x, y, radius * (1 - softness), 0, 2 * Math.PI);
        context.strokeStyle = "rgba(255, 255, 255, 0.5)";
        context.lineWidth = 1;
        context.stroke(core);
    }
    const aside = radius > 14 ? 0 : radius + 8;
    strokeTwice(context, signOf(mode, x + aside, y - aside));
}

const SIGNS = {         // lines from place to place, about the middle
    add: [[[-4, 0], [4, 0]], [[0, -4], [0, 4]]],
    remove: [[[-4, 0], [4, 0]]],
    unknown: [[[-3, -3], [-1, -5], [1, -5], [3, -3], [3, -1], [0, 1], [0, 2]], [[0, 4.5], [0, 5]]],
    known: [[[-4, 0], [-1, 3], [4, -4]]],
};

function signOf(mode, x, y) {
    const path = new Path2D();
    for (const line of SIGNS[mode] ?? []) {
        line.forEach(([dx, dy], nth) => path[nth ? "lineTo" : "moveTo"](x + dx, y + dy));
    }
    return path;
}
