// What the page tells a person beside the image: banner, notices, hints, dialogs.

import { remember, remembered } from "./controls.js";
import { STATES } from "./filmstrip.js";

const BRIEF = 6000;             // milliseconds that a notice stays
const APART = "Not connected: your strokes are kept here and are sent when the editor answers again.";

const part = (id) => document.getElementById(id);
let timer;

/** Tell something for a while; a button with `label` calls `act`. */
export function tell(text, label = "", act = null) {
    const [words, button] = part("notice").children;
    words.textContent = text;
    button.hidden = !act;
    button.textContent = label;
    button.onclick = () => {
        part("notice").hidden = true;
        act();
    };
    part("notice").hidden = false;
    clearTimeout(timer);
    timer = setTimeout(() => part("notice").hidden = true, BRIEF);
}

/** Tell in the image's place why there is none; "" takes it back. */
export function tellAbsent(text) {
    part("absent").textContent = text;
    part("absent").hidden = !text;
}

/** Tell whether all is saved, and what is in the way; `full` is what the editor says of its disk, or null. */
export function tellSaved({ connected, full, queue }) {
    const unsaved = full ? `Not saved: ${full}. Your strokes are kept here, and saving is tried again.` : "";
    const trouble = connected ? unsaved : APART;
    if (part("banner").textContent !== trouble) part("banner").textContent = trouble;       // read aloud once
    part("banner").hidden = !trouble;
    const waiting = trouble ? `${queue.length} not saved` : "Saving…";
    part("saved").textContent = queue.length ? waiting : "Saved";
    part("unsent").textContent = queue.length ? "Some strokes are not saved yet." : "";
    part("finish-now").disabled = queue.length > 0 || !connected;
}

/** Show a newcomer a line of hints, until they have read it. */
export function showHints() {
    part("hints").hidden = remembered("hints", { read: false }).read;
    part("hints").lastElementChild.onclick = () => {
        part("hints").hidden = true;
        remember("hints", { read: true });
    };
}

/** Ask whether the work on the records is done. */
export function askDone(records, finish) {
    const counts = ["confirmed", "edited", "skipped", "untouched"].map((state) => {
        return `${records.filter((record) => record.state === state).length} ${STATES[state].toLowerCase()}`;
    });
    part("summary").textContent = counts.join(", ");
    part("finish").returnValue = "";
    part("finish").onclose = () => part("finish").returnValue === "done" && finish();
    part("finish").showModal();
}

/** Show the last screen; `others` are the people that the editor waits for. */
export function close(others) {
    part("waiting").textContent = others.length ? `The editor goes on until all are done. It waits for: ${others.join(", ")}.` : "";
    part("closing").hidden = false;
}
