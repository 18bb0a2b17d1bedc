// What benchmarks/editor.py has a page write down: when the pointer or a key moved, when the answer to it was painted,
// and when frames began. Times are in milliseconds.
const probe = {moves: [], keys: [], frames: []};
let watching = false;

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
        if (does === "draw") {
            probe.moves.filter((move) => move.tick === null).forEach((move) => { move.tick = tick; });
        }
        super.send(text);
    }
}

function hear({of, tick}) {
    const name = {opened: "opened", answer: "answered", saved: "saved"}[of];
    if (of === "answer" && tick !== null) {
        const answered = probe.moves.filter((move) => !move.answered && move.tick !== null && move.tick <= tick);
        answered.forEach((move) => { move.answered = true; });
        painted((now) => answered.forEach((move) => { move.took = now - move.at; }));
    } else if (name && probe.keys.length) {
        const key = probe.keys.at(-1);
        painted((now) => { key[name] ??= now - key.at; });
    }
}

function frame(at) {
    if (watching) {
        probe.frames.push(at);
        requestAnimationFrame(frame);
    }
}

probe.watch = (on) => {
    watching = on;
    if (on) {
        probe.frames = [];
        requestAnimationFrame(frame);
    }
};

window.WebSocket = WatchedSocket;
window.probe = probe;
window.addEventListener("pointermove", (event) => {
    if (event.buttons) {
        event.getCoalescedEvents().forEach(({timeStamp}) => probe.moves.push({at: timeStamp, tick: null}));
    }
}, true);
window.addEventListener("keydown", (event) => {
    const key = {at: event.timeStamp};
    probe.keys.push(key);
    painted((now) => { key.painted = now - key.at; });
}, true);
