// Every key of the page: what it does, and how the help sheet calls it.

/** Rows of [group, keys as `pressed` writes them, as the sheet shows them, what they do, an action, its argument]. */
const KEYS = [
    ["Records", ["ArrowRight"], "→", "next", "next"],
    ["Records", ["ArrowLeft"], "←", "previous", "previous"],
    ["Records", ["Home"], "Home", "first", "first"],
    ["Records", ["End"], "End", "last", "last"],
    ["Records", ["Enter"], "Enter", "confirm, and go on", "confirm"],
    ["Records", ["s"], "S", "skip", "skip"],
    ["Strokes", ["u", "Ctrl+z"], "U / Ctrl+Z", "undo", "undo"],
    ["Strokes", ["Ctrl+Shift+z", "Ctrl+y"], "Ctrl+Y", "redo (Ctrl+Shift+Z too)", "redo"],
    ["Strokes", ["Delete"], "Del", "reset: take all back", "reset"],
    ["Strokes", ["f"], "F", "fill the whole map", "fill"],
    ["Strokes", ["i"], "I", "invert the whole map", "invert"],
    ["Strokes", ["Escape"], "Esc", "give up the stroke", "escape"],
    ["Strokes", ["1"], "1", "start from predicted", "start", "attention"],
    ["Strokes", ["2"], "2", "start from human", "start", "map"],
    ["Strokes", ["3"], "3", "start from empty", "start", "empty"],
    ["Brush", ["a"], "A", "add", "tool", "add"],
    ["Brush", ["e", "r"], "E / R", "remove (eraser)", "tool", "remove"],
    ["Brush", ["d"], "D", "don’t know", "tool", "unknown"],
    ["Brush", ["k"], "K", "known again", "tool", "known"],
    ["Brush", ["b"], "B", "brush", "shape", "brush"],
    ["Brush", ["p"], "P", "polygon", "shape", "polygon"],
    ["Brush", ["["], "[", "smaller", "radius", -1],
    ["Brush", ["]"], "]", "larger", "radius", 1],
    ["Brush", ["{", "Shift+["], "Shift+[", "weaker", "strength", -1],
    ["Brush", ["}", "Shift+]"], "Shift+]", "stronger", "strength", 1],
    ["Brush", [","], ",", "harder edge", "softness", -1],
    ["Brush", ["."], ".", "softer edge", "softness", 1],
    ["View", [" "], "Space (held)", "image alone; drag pans", "peek", true],
    ["View", ["o"], "O", "less of the map", "opacity", -1],
    ["View", ["Shift+o"], "Shift+O", "more of the map", "opacity", 1],
    ["View", ["c"], "C", "next colours", "colours"],
    ["View", ["x"], "X", "stretch a dark map", "stretch"],
    ["View", ["m"], "M", "cells of the map", "cells"],
    ["View", ["+", "="], "+", "zoom in", "zoomIn"],
    ["View", ["-"], "−", "zoom out", "zoomOut"],
    ["View", ["0"], "0", "fit the window", "fit"],
    ["View", ["?"], "?", "this help", "help"],
];

/** Return a key as the table writes it; what a layout needs to type a sign, such as AltGr, is no part of it. */
function pressed(event) {
    const letter = /^[a-z]$/i.test(event.key);
    const typed = event.getModifierState?.("AltGraph") || (event.altKey && !letter);
    const control = (event.ctrlKey || event.metaKey) && !typed ? "Ctrl+" : "";
    const alt = event.altKey && !typed ? "Alt+" : "";
    const shift = event.shiftKey && (letter || event.key.length > 1) ? "Shift+" : "";
    return control + alt + shift + (letter ? event.key.toLowerCase() : event.key);
}

/** Say whether the element with the focus needs a key for itself. */
function isTaken(element, key) {
    if (document.querySelector("dialog[open], #closing:not([hidden])")) return true;
    if (element.matches("select, textarea, input:not([type=range], [type=checkbox])")) return key !== "Escape";
    if (element.matches("input[type=range]")) return /^(Arrow|Home|End|Page)/.test(key);
    return element.matches("button, input[type=checkbox]") && (key === " " || key === "Enter");
}

/** Call the action of each key; `actions` has a function per name in the table. */
export function listen(actions) {
    addEventListener("keydown", (event) => {
        const key = pressed(event);
        const row = KEYS.find(([, keys]) => keys.includes(key));
        if (!row || isTaken(document.activeElement, key)) return;
        event.preventDefault();
        const [, , , , action, argument] = row;
        if (!event.repeat || !["confirm", "skip", "peek"].includes(action)) actions[action](argument);
    });
    addEventListener("keyup", (event) => event.key === " " && actions.peek(false));
    addEventListener("blur", () => actions.peek(false));
}

/** Say the key of each button in its title. */
export function writeTitles() {
    for (const [, , shown, text, action, argument] of KEYS) {
        const places = `#${action}, [data-${action}="${argument}"], [data-action=${action}]`;
        const button = document.querySelector(`button:is(${places})`);
        if (button) button.title = `${text[0].toUpperCase()}${text.slice(1)} (${shown})`;
    }
}

/** Write the table into the help sheet. */
export function writeSheet(element) {
    for (const group of new Set(KEYS.map(([name]) => name))) {
        const section = element.appendChild(document.createElement("section"));
        section.appendChild(document.createElement("h3")).textContent = group;
        const list = section.appendChild(document.createElement("dl"));
        for (const [, , shown, text] of KEYS.filter(([name]) => name === group)) {
            list.appendChild(document.createElement("dt")).textContent = shown;
            list.appendChild(document.createElement("dd")).textContent = text;
        }
    }
}
