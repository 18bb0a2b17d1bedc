// The share of each pixel of a layer that lies inside an outline, as hkmap/maps/polygons.py has it: exact, even-odd.

/**
 * Call touch(index, share) for each pixel with a share above 0.
 * @param {number[][]} points corners [x, y] in pixels of the frame
 * @param {number[]} frame [width, height]
 * @param {number[]} layer [height, width]
 */
export function coverOutline(points, frame, layer, touch) {
    const [height, width] = layer;
    const edges = edgesOf(points, width / frame[0], height / frame[1], height);
    const sums = new Float64Array(width + 2);
    const last = Math.min(height, Math.ceil(edges.reduce((most, edge) => Math.max(most, edge.bottom), 0)));
    let active = [], next = 0;
    for (let row = Math.max(0, Math.floor(edges[0]?.top ?? 0)); row < last; row++) {
        active = active.filter((edge) => edge.bottom > row);
        while (next < edges.length && edges[next].top < row + 1) active.push(edges[next++]);
        sumRow(active, row, sums, width);
        for (let x = 0, share = 0; x < width; x++) {
            share += sums[x];
            if (share >= 1e-9) touch(row * width + x, Math.min(1, share));
        }
    }
}

/** The edges that are not level and reach into the layer, in its pixels, each from top to bottom, highest first. */
function edgesOf(points, across, down, height) {
    const corners = points.map(([x, y]) => [x * across, y * down]);
    return corners
        .map((corner, at) => [corner, corners[(at + 1) % corners.length]].sort((one, other) => one[1] - other[1]))
        .filter(([from, to]) => from[1] < to[1] && from[1] < height && to[1] > 0)
        .map(([from, to]) => ({
            x: from[0], top: from[1], bottom: to[1], slope: (to[0] - from[0]) / (to[1] - from[1]),
        }))
        .sort((one, other) => one.top - other.top);
}

function at(edge, y) {
    return edge.x + (y - edge.top) * edge.slope;
}

/** Fill sums so that its running total is the share of each pixel of the row. */
function sumRow(edges, row, sums, width) {
    sums.fill(0);
    const levels = levelsOf(edges, row);
    for (let level = 1; level < levels.length; level++) {
        const top = levels[level - 1], bottom = levels[level];
        edges.filter((edge) => edge.top <= top && edge.bottom >= bottom)
            .map((edge) => [at(edge, top), at(edge, bottom)])
            .sort((one, other) => one[0] + one[1] - other[0] - other[1])
            .forEach(([left, right], nth) => addPiece(sums, width, left, right, nth % 2 ? top - bottom : bottom - top));
    }
}

/** The y within a row between which no edge begins, ends or passes another. */
function levelsOf(edges, row) {
    const levels = new Set([row, row + 1]);
    for (const edge of edges) {
        levels.add(Math.max(row, edge.top)).add(Math.min(row + 1, edge.bottom));
    }
    for (let one = 1; one < edges.length; one++) {
        for (let other = 0; other < one; other++) {
            addCrossing(levels, edges[one], edges[other], row);
        }
    }
    return [...levels].sort((one, other) => one - other);
}

function addCrossing(levels, one, other, row) {
    const top = Math.max(row, one.top, other.top), bottom = Math.min(row + 1, one.bottom, other.bottom);
    const above = at(one, top) - at(other, top), below = at(one, bottom) - at(other, bottom);
    if (top < bottom && above * below < 0) {
        levels.add(top + above / (above - below) * (bottom - top));
    }
}

/** Add what is right of a piece of an edge, from x left to right; drop is its height, with a sign. */
function addPiece(sums, width, left, right, drop) {
    const low = Math.min(left, right), high = Math.max(left, right);
    if (low >= width) return;
    for (let from = low; from < high || from === low; ) {
        const column = from < 0 ? 0 : Math.floor(from);
        const to = from < 0 ? Math.min(0, high) : Math.min(column + 1, high);
        const part = high > low ? drop * (to - from) / (high - low) : drop;
        const middle = Math.max(0, (from + to) / 2);
        sums[column] += part * (column + 1 - middle);
        sums[column + 1] += part * (middle - column);
        if (to >= high || to >= width) return;
        from = to;
    }
}
