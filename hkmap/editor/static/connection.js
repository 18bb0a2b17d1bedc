// The page's side of /live: changes go out one at a time and wait here, in order, until the editor has kept them.

const FULL_DISK_PAUSE = 2000;       // milliseconds until a change is tried again that a full disk refused
const LONGEST_PAUSE = 5000;         // between attempts to reconnect
const PATIENCE = 30000;             // for a reply; then the connection is taken for lost

/** Return the strokes, and what redo brings back, after changes that the editor does not know yet. */
export function replayed({ strokes, undone }, changes) {
    let done = [...strokes], back = [...undone];
    for (const change of changes) {
        if (change.do === "paint") [done, back] = [[...done, change.stroke], []];
        else if (change.do === "undo") back.push(done.pop());
        else if (change.do === "redo") done.push(back.pop());
        else if (change.do === "reset") [done, back] = [[], [...back, ...done.reverse()]];
    }
    return { strokes: done, undone: back };
}

/**
 * `listener` has opened(message, waiting, conflict), answer(top), kept(n, top), saved(message, more), trouble(message),
 * known(message), done(message) and status(), which is called whenever `connected`, `full` or `queue` change.
 */
export class Connection {
    connected = false;
    full = null;            // what the editor says of its disk, while it keeps nothing
    queue = [];             // changes not kept yet, oldest first
    number = null;          // of the record that is open
    #listener;
    #socket = null;
    #asked = [];            // what was sent and has no reply yet: replies come in this order
    #tried = null;          // the change that was sent last: it may be kept, though no reply came
    #revisions = new Map(); // of each record, the queue included
    #tick = 0;
    #shown = 0;             // the tick of the newest answer
    #drawing = null;        // the stroke under way: what of it waits for the next frame
    #failures = 0;
    #finished = false;
    #timers = {};

    constructor(listener) {
        this.#listener = listener;
        addEventListener("beforeunload", (event) => this.queue.length && event.preventDefault());
        for (const name of ["online", "focus"]) addEventListener(name, () => this.#connect());
        this.#connect();
    }

    open(number) {
        this.number = number;
        this.#drawing = null;
        this.#shown = this.#tick + 1;       // answers to earlier draws are of another record
        if (!this.#asked.some((sent) => sent.do === "open")) this.#ask({ do: "open", n: number });
    }

    /** Keep a change of the record, and send it when its turn comes; its revision may be told later. */
    change(message) {
        const revision = this.#revisions.get(this.number);
        this.#drawing = null;
        if (revision !== undefined) this.#revisions.set(this.number, revision + 1);
        this.queue.push({ ...message, n: this.number, revision });
        this.#next();
    }

    begin(stroke) {
        this.#drawing = { stroke, points: [] };
        this.#shown = this.#tick + 1;
        this.#flushFrames(this.#drawing);
    }

    /** Tell where a stroke goes, at once; while an answer is under way, with the next frame. */
    move(points) {
        this.#drawing?.points.push(...points);
        if (this.#shown >= this.#tick) this.#flush();
    }

    cancel() {
        if (this.#drawing) this.#send({ do: "lift", n: this.number });
        this.#drawing = null;
    }

    finish() {
        this.#send({ do: "done" });
    }

    // what is sent

    #flushFrames(drawing) {
        if (this.#drawing !== drawing) return;
        this.#flush();
        requestAnimationFrame(() => this.#flushFrames(drawing));
    }

    #flush() {      // what the pointer did since the last time
        const { stroke, points } = this.#drawing ?? { points: [] };
        if (!stroke && !points.length) return;
        const begun = stroke ? { stroke: { ...stroke, points: [...stroke.points, ...points] } } : { points };
        this.#send({ do: "draw", n: this.number, ...begun, tick: ++this.#tick });
        Object.assign(this.#drawing, { stroke: null, points: [] });
    }

    #next() {
        const [change] = this.queue;
        if (change && !this.#asked.length) {
            if (change.revision !== undefined && this.connected) this.#tried = change;
            this.#ask(change.revision === undefined ? { do: "open", n: change.n } : change);
        }
        this.#listener.status();
    }

    #ask(message) {
        if (!this.#send(message)) return;
        this.#asked.push(message);
        this.#wait();
    }

    #wait() {
        clearTimeout(this.#timers.patience);
        const socket = this.#socket;
        if (this.#asked.length) this.#timers.patience = setTimeout(() => this.#lost(socket), PATIENCE);
    }

    #send(message) {
        if (!this.connected) return false;
        this.#socket.send(JSON.stringify(message));
        return true;
    }

    // the socket

    #connect() {
        if (this.#finished || this.#socket) return;
        clearTimeout(this.#timers.reconnect);
        const socket = new WebSocket(`ws://${location.host}/live`);
        this.#socket = socket;
        socket.onopen = () => socket === this.#socket && this.#joined();
        socket.onclose = () => this.#lost(socket);
        socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(JSON.parse(data));
    }

    #joined() {
        this.connected = true;
        this.#failures = 0;
        const others = new Set(this.queue.map((change) => change.n));
        others.delete(this.number);
        for (const n of others) this.#ask({ do: "open", n });
        if (this.number !== null) this.#ask({ do: "open", n: this.number });      // last: it is where the person is
        this.#listener.status();
    }

    #lost(socket) {
        if (socket !== this.#socket) return;
        socket.onclose = null;
        socket.close();
        this.#socket = this.#drawing = null;
        this.connected = false;
        this.#asked = [];
        this.#wait();
        const pause = Math.min(LONGEST_PAUSE, 250 * 2 ** this.#failures++);
        this.#timers.reconnect = setTimeout(() => this.#connect(), pause);
        if (!this.#finished) this.#listener.status();
    }

    // what is received

    #receive(message) {
        const take = {
            opened: this.#opened, answer: this.#answer, saved: this.#saved, trouble: this.#trouble, done: this.#done,
            known: this.#listener.known,
        }[message.of];
        take?.call(this, message);
        this.#wait();
    }

    #opened(message) {
        const { n, revision } = message, head = this.#asked[0];
        const refused = head && head.do !== "open" && head.n === n && head.revision !== revision;
        if (refused || head?.do === "open") this.#asked.shift();
        const own = this.queue.filter((change) => change.n === n);
        let waiting = own.filter((change) => !(change.revision < revision));
        waiting.forEach((change, nth) => change.revision ??= revision + nth);
        const foreign = own.some((change) => change.revision < revision && change !== this.#tried);     // never sent
        const conflict = refused || foreign || (waiting.length > 0 && waiting[0].revision !== revision);
        if (conflict) waiting = [];
        this.queue = this.queue.filter((change) => change.n !== n || waiting.includes(change));
        this.#revisions.set(n, revision + waiting.length);
        this.#listener.opened(message, waiting, conflict);
        this.#reopen(n);
        this.#next();
    }

    #reopen(opened) {       // the person went on while a record was being opened
        const opening = this.#asked.some((sent) => sent.do === "open");
        if (this.number !== opened && !opening) this.#ask({ do: "open", n: this.number });
    }

    #saved(message) {
        const [change] = this.queue;
        if (!change || change.n !== message.n || change.revision >= message.revision) return;
        this.#asked.shift();
        this.queue.shift();
        this.full = null;
        this.#listener.saved(message, this.queue.some(({ n }) => n === message.n));
        this.#next();
    }

    #trouble(message) {
        const sent = this.#asked[0], isOpening = sent?.do === "open" && sent.n === message.n;
        if (message.what === "disk") {
            this.#asked.shift();
            this.full = message.text;
            this.#timers.full = setTimeout(() => this.#next(), FULL_DISK_PAUSE);
            this.#listener.status();
            return;
        }
        if (message.what === "record" && isOpening) {
            this.#asked.shift();
            this.queue = this.queue.filter((change) => change.n !== sent.n || change.revision !== undefined);
            this.#reopen(sent.n);
        } else if (message.what === "message" && sent && !isOpening) {
            this.#refused(sent);
        }
        this.#listener.trouble(message, isOpening);
        this.#next();
    }

    /** The editor cannot make a change, so those after it on the record are void too. */
    #refused(change) {
        this.#asked.shift();
        this.queue = this.queue.filter(({ n }) => n !== change.n);
        this.#ask({ do: "open", n: change.n });
    }

    #answer({ n, tick, top }) {
        if (tick === null) this.#listener.kept(n, top);
        const stale = tick === null ? this.#drawing !== null : tick < this.#shown;
        if (n !== this.number || stale) return;
        this.#shown = tick ?? this.#shown;
        this.#listener.answer(top);
    }

    #done(message) {
        this.#finished = true;
        this.#listener.done(message);
        this.#socket?.close();
    }
}
