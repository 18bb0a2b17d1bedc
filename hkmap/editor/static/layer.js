// The twin of hkmap/maps/strokes.py: strokes become two affine functions of each pixel of a fine layer over the image,
// of the map and of its certainty. Numbers are rounded to float32 where Python rounds them.

import { coverOutline } from "./coverage.js";

const TOOLS = {
    add: { scale: 0, offset: 1, layers: "attention" },
    remove: { scale: 0, offset: 0, layers: "attention" },
    invert: { scale: -1, offset: 1, layers: "attention" },
    unknown: { scale: 0, offset: 0, layers: "knowledge" },
    known: { scale: 0, offset: 1, layers: "knowledge" },
};
const round = Math.fround;

/** The numbers of base64 of little-endian float32. */
export function decode(base64) {
    return new Float32Array(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer);
}

/** The smallest rectangle [x0, y0, x1, y1] over two; null is an empty one. */
export function union(one, other) {
    if (!one || !other) return one ?? other;
    return [
        Math.min(one[0], other[0]), Math.min(one[1], other[1]), Math.max(one[2], other[2]), Math.max(one[3], other[3]),
    ];
}

export class Painting {
    /**
     * @param {{size: number[], layer: number[], frame: number[], map: Float32Array, certainty: Float32Array|null}} base
     *     size [h, w] of the map, layer [H, W], frame [width, height] of the image that strokes are in the pixels of
     */
    constructor({ size, layer, frame, map, certainty }) {
        Object.assign(this, { size, layer, frame, map, certainty });
        const count = layer[0] * layer[1];
        const affine = () => ({ scale: new Float32Array(count), offset: new Float32Array(count) });
        this.mostKept = 32e6;                           // numbers for undo, 128 MB; beyond, strokes are painted again
        this.attention = affine();
        this.knowledge = affine();
        this.under = affine();                          // what a stroke under way lies on
        this.found = new Float32Array(count);           // how far the brush has come, from 0 to 1
        this.smooth = enlarged(map, size, layer);
        this.cellMap = new Float32Array(map.length);
        this.cellCertainty = new Float32Array(map.length);
        this.load([], []);
    }

    // a stroke under way

    /** Begin a brush stroke, along its points so far; → the rectangle of the layer that has changed, or null. */
    begin(stroke) {
        this.cancel();
        const [height, width] = this.layer, { radius = 0, softness = 0.5, strength = 1 } = stroke;
        const steps = [this.frame[0] / width, this.frame[1] / height];
        this.way = {
            stroke: { ...stroke, points: [] }, tool: TOOLS[stroke.tool], strength: round(strength), rectangle: null,
            steps, fall: Math.max(radius * softness, ...steps), reach: Math.max(radius, ...steps),
        };
        return this.move(stroke.points ?? []);
    }

    /** Go on along more points; → the rectangle of the layer that has changed, or null. */
    move(points) {
        const { stroke } = this.way;
        let dirty = null;
        for (const point of points) {
            dirty = union(dirty, this.cover(stroke.points.at(-1) ?? point, point));
            stroke.points.push(point);
        }
        this.change(dirty);
        this.way.rectangle = union(this.way.rectangle, dirty);
        return dirty;
    }

    /** → the whole stroke, which now can be undone. */
    end() {
        const { stroke, tool, rectangle } = this.way;
        const former = { layers: tool.layers, rectangle, ...this.former(rectangle) };
        this.lift();
        this.history.push(former);
        this.kept += former.scale.length * 2;
        for (let nth = 0; this.kept > this.mostKept && nth < this.history.length - 1; nth++) {
            this.forget(nth);
        }
        this.strokes.push(stroke);
        this.undone.length = 0;
        return stroke;
    }

    /** Give the stroke under way up. */
    cancel() {
        if (!this.way) return;
        const { tool, rectangle } = this.way;
        this.put(this[tool.layers], rectangle, this.former(rectangle));
        this.lift();
        this.change(rectangle);
    }

    // whole strokes

    /** Paint a whole stroke: along its points, inside its outline, or without points everywhere. */
    apply(stroke) {
        const kept = { ...stroke, points: stroke.points ?? [] };
        if (kept.points.length && !kept.outline) {
            this.begin(kept);
        } else {
            this.begin({ ...kept, points: [] });
            this.way.stroke = stroke;
            this.fill(kept);
        }
        return this.end();
    }

    undo() {
        this.cancel();
        if (!this.strokes.length) return false;
        const stroke = this.strokes.pop(), former = this.history.pop();
        this.undone.push(stroke);
        if (former.scale) {
            this.kept -= former.scale.length * 2;
            this.put(this[former.layers], former.rectangle, former);
            this.change(former.rectangle);
        } else {
            this.load(this.strokes, this.undone);
        }
        return true;
    }

    redo() {
        this.cancel();
        if (!this.undone.length) return false;
        const rest = this.undone.slice(0, -1);
        this.apply(this.undone.at(-1));
        this.undone = rest;
        return true;
    }

    /** Take all strokes back; redo brings them back one by one. */
    reset() {
        this.load([], [...this.undone, ...[...this.strokes].reverse()]);
    }

    /** Begin anew with these strokes, and those that can be redone (the next one last). */
    load(strokes, undone) {
        this.way = null;
        this.found.fill(0);
        for (const { scale, offset } of [this.attention, this.knowledge]) {
            scale.fill(1);
            offset.fill(0);
        }
        this.strokes = [];
        this.undone = [];
        this.history = [];                  // of each stroke, what its rectangle was before
        this.kept = 0;
        strokes.forEach((stroke) => this.apply(stroke));
        this.undone = [...undone];
        this.stale = null;
        this.change([0, 0, this.layer[1], this.layer[0]]);
    }

    // what is seen

    /** The value that a pixel of the layer shows. */
    value(x, y) {
        const at = y * this.layer[1] + x;
        return this.attention.scale[at] * this.smooth[at] + this.attention.offset[at];
    }

    /** The certainty of a pixel of the layer. */
    known(x, y) {
        const at = y * this.layer[1] + x;
        return this.knowledge.scale[at] * this.before(x, y) + this.knowledge.offset[at];
    }

    /** The map and its certainty (null: all is known), as Python's Painting.of(base); arrays that are used again. */
    cells() {
        const [tall, wide] = [this.layer[0] / this.size[0], this.layer[1] / this.size[1]];
        if (this.stale) {
            const [x0, y0, x1, y1] = this.stale;
            for (let row = Math.floor(y0 / tall); row < Math.ceil(y1 / tall); row++) {
                for (let column = Math.floor(x0 / wide); column < Math.ceil(x1 / wide); column++) {
                    this.average(row, column, tall, wide);
                }
            }
            this.stale = null;
        }
        const told = this.certainty || this.cellCertainty.some((one) => one !== 1);
        return { map: this.cellMap, certainty: told ? this.cellCertainty : null };
    }

    // the inside

    before(x, y) {
        if (!this.certainty) return 1;
        const [height, width] = this.layer, [rows, columns] = this.size;
        return this.certainty[Math.floor(y * rows / height) * columns + Math.floor(x * columns / width)];
    }

    average(row, column, tall, wide) {
        const at = row * this.size[1] + column, width = this.layer[1], count = tall * wide;
        const { scale, offset } = this.attention, knowledge = this.knowledge;
        const before = this.certainty ? this.certainty[at] : 1;
        let knownScale = 0, knownOffset = 0, weights = 0, scales = 0, offsets = 0;
        for (let y = row * tall; y < (row + 1) * tall; y++) {
            for (let i = y * width + column * wide; i < y * width + (column + 1) * wide; i++) {
                knownScale += knowledge.scale[i];
                knownOffset += knowledge.offset[i];
                const weight = knowledge.scale[i] * before + knowledge.offset[i];
                weights += weight;
                scales += weight * scale[i];
                offsets += weight * offset[i];
            }
        }
        const certainty = round(round(knownScale / count) * before + round(knownOffset / count));
        const value = round(scales / weights) * this.map[at] + round(offsets / weights);
        this.cellMap[at] = certainty > 0 ? clipped(value) : 0;
        this.cellCertainty[at] = clipped(certainty);
    }

    change(dirty) {
        this.changed = dirty;               // the rectangle that the last change touched
        this.stale = union(this.stale, dirty);
    }

    /** Raise what was found along a brush's way; → the rectangle that it may have touched, or null. */
    cover(start, end) {
        const { steps, reach, fall } = this.way, [height, width] = this.layer;
        const x0 = Math.max(0, Math.floor((Math.min(start[0], end[0]) - reach) / steps[0]));
        const y0 = Math.max(0, Math.floor((Math.min(start[1], end[1]) - reach) / steps[1]));
        const x1 = Math.min(width, Math.ceil((Math.max(start[0], end[0]) + reach) / steps[0]));
        const y1 = Math.min(height, Math.ceil((Math.max(start[1], end[1]) + reach) / steps[1]));
        if (x0 >= x1 || y0 >= y1) return null;
        const wayX = end[0] - start[0], wayY = end[1] - start[1], length = Math.max(wayX * wayX + wayY * wayY, 1e-12);
        for (let row = y0; row < y1; row++) {
            const y = (row + 0.5) * steps[1] - start[1];
            for (let column = x0; column < x1; column++) {
                const x = (column + 0.5) * steps[0] - start[0];
                const along = clipped((x * wayX + y * wayY) / length);
                const aside = x - along * wayX, ahead = y - along * wayY, square = aside * aside + ahead * ahead;
                if (square < reach * reach) {
                    this.raise(row * width + column, round(Math.min(1, (reach - Math.sqrt(square)) / fall)));
                }
            }
        }
        return [x0, y0, x1, y1];
    }

    raise(at, found) {
        if (found > this.found[at]) {
            const squared = round(round(this.way.strength * found) * found);
            this.blend(at, found, round(squared * round(3 - round(2 * found))));
        }
    }

    /** Blend a pixel, as it was before the stroke, by a share. */
    blend(at, found, share) {
        const { tool } = this.way, { scale, offset } = this[tool.layers], under = this.under;
        if (this.found[at] === 0) {
            under.scale[at] = scale[at];
            under.offset[at] = offset[at];
        }
        this.found[at] = found;
        const rest = round(1 + round(share * (tool.scale - 1)));
        scale[at] = rest * under.scale[at];
        offset[at] = round(rest * under.offset[at]) + round(share * tool.offset);
    }

    fill({ points, strength = 1 }) {
        const [height, width] = this.layer;
        if (points.length) {
            coverOutline(points, this.frame, this.layer, (at, share) => this.blend(at, 1, round(strength * share)));
        } else {
            for (let at = 0; at < height * width; at++) this.blend(at, 1, round(strength));
        }
        this.way.rectangle = points.length ? this.around(points) : [0, 0, width, height];
        this.change(this.way.rectangle);
    }

    around(points) {
        const [height, width] = this.layer, across = width / this.frame[0], down = height / this.frame[1];
        let [x0, y0, x1, y1] = [width, height, 0, 0];
        for (const [x, y] of points) {
            x0 = Math.min(x0, Math.max(0, Math.floor(x * across)));
            y0 = Math.min(y0, Math.max(0, Math.floor(y * down)));
            x1 = Math.max(x1, Math.min(width, Math.ceil(x * across)));
            y1 = Math.max(y1, Math.min(height, Math.ceil(y * down)));
        }
        return x0 < x1 && y0 < y1 ? [x0, y0, x1, y1] : null;
    }

    /** What lay in a rectangle before the stroke under way. */
    former(rectangle) {
        const [x0, y0, x1, y1] = rectangle ?? [0, 0, 0, 0], width = this.layer[1];
        const { scale, offset } = this[this.way.tool.layers], under = this.under;
        const former = { scale: new Float32Array((x1 - x0) * (y1 - y0)), offset: null };
        former.offset = new Float32Array(former.scale.length);
        let to = 0;
        for (let y = y0; y < y1; y++) {
            for (let at = y * width + x0; at < y * width + x1; at++, to++) {
                const touched = this.found[at] > 0;
                former.scale[to] = touched ? under.scale[at] : scale[at];
                former.offset[to] = touched ? under.offset[at] : offset[at];
            }
        }
        return former;
    }

    put({ scale, offset }, rectangle, former) {
        const [x0, y0, x1, y1] = rectangle ?? [0, 0, 0, 0], width = this.layer[1], across = x1 - x0;
        for (let y = y0; y < y1; y++) {
            const from = (y - y0) * across;
            scale.set(former.scale.subarray(from, from + across), y * width + x0);
            offset.set(former.offset.subarray(from, from + across), y * width + x0);
        }
    }

    lift() {
        const [x0, y0, x1, y1] = this.way.rectangle ?? [0, 0, 0, 0], width = this.layer[1];
        for (let y = y0; y < y1; y++) this.found.fill(0, y * width + x0, y * width + x1);
        this.way = null;
    }

    forget(nth) {
        const former = this.history[nth];
        this.kept -= (former.scale?.length ?? 0) * 2;
        former.scale = former.offset = null;
    }
}

function clipped(value) {
    return Math.min(1, Math.max(0, value));
}

/** A map on the pixels of a layer, from the middle of one cell to the next without a step: for looks alone. */
function enlarged(map, [rows, columns], [height, width]) {
    const found = new Float32Array(height * width);
    for (let y = 0; y < height; y++) {
        const [above, below, down] = between(y, rows, height);
        for (let x = 0; x < width; x++) {
            const [left, right, across] = between(x, columns, width);
            const top = map[above * columns + left] * (1 - across) + map[above * columns + right] * across;
            const bottom = map[below * columns + left] * (1 - across) + map[below * columns + right] * across;
            found[y * width + x] = top * (1 - down) + bottom * down;
        }
    }
    return found;
}

function between(place, cells, pixels) {
    const at = Math.min(cells - 1, Math.max(0, (place + 0.5) * cells / pixels - 0.5));
    const first = Math.floor(at);
    return [first, Math.min(cells - 1, first + 1), at - first];
}
