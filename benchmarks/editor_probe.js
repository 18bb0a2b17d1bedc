// What benchmarks/editor.py has a page write down: when the pointer or a key moved, when the answer to it was painted,
// and when frames began. Times are in milliseconds.
const probe = {moves: [], keys: [], frames: []};
let next = 0;           // the frame that is asked for while frames are watched
let lifted = [];        // moves of a stroke that is whole, and has no answer yet
let kept = [];          // those of them that the editor has kept: the next answer is to them

const painted = (write) => requestAnimationFrame(() => {
    const channel = new MessageChannel();           // a task after the frame that the answer is in
    channel.port1.onmessage = () => write(performance.now());
    channel.port2.postMessage(null);
});

class WatchedSocket extends WebSocket {
    constructor(...given) {
        super(...given);
        this.addEventListener("message", ({data}) => hear(JSON.parse(data)));
    }

    send(text) {
        const {do: does, tick} = JSON.parse(text);
        const waiting = probe.moves.filter((move) => !move.answered);
        if (does === "draw") {
            waiting.forEach((move) => { move.tick ??= tick; });
        } else if (does === "paint") {
            lifted = waiting;
        }
        super.send(text);
    }
}

function hear({of, tick}) {
    if (of === "saved") {
        kept = lifted;
    } else if (of === "answer") {
        answer(tick === null ? kept : probe.moves.filter((move) => move.tick !== null && move.tick <= tick));
    }
    const key = probe.keys.at(-1);
    if (key) {
        painted((now) => { key[of] ??= now - key.at; });
    }
}

function answer(moves) {
    const answered = moves.filter((move) => !move.answered);
    answered.forEach((move) => { move.answered = true; });
    painted((now) => answered.forEach((move) => { move.took = now - move.at; }));
}

function frame(at) {
    probe.frames.push(at);
    next = requestAnimationFrame(frame);
}

probe.watch = (on) => {
    cancelAnimationFrame(next);
    if (on) {
        probe.frames = [];
        next = requestAnimationFrame(frame);
    }
};

window.WebSocket = WatchedSocket;
window.probe = probe;
window.addEventListener("pointerrawupdate", (event) => {
    if (event.buttons) {
        event.getCoalescedEvents().forEach(({timeStamp}) => probe.moves.push({at: timeStamp, tick: null}));
    }
}, true);
window.addEventListener("keydown", (event) => {
    const key = {at: event.timeStamp};
    probe.keys.push(key);
    painted((now) => { key.painted = now - key.at; });
}, true);
