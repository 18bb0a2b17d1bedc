// The network's answer beside the image: bars that follow the pointer.

/** Return a probability in per cent, finer where it is small. */
function percent(probability) {
    const value = 100 * probability;
    return `${value >= 9.95 || value === 0 ? value.toFixed(0) : value.toFixed(1)} %`;
}

/** Return how far a probability moved, in points of per cent; "" where that rounds to nothing. */
function change(probability, before) {
    const points = Math.round(100 * (probability - before));
    return points === 0 ? "" : `${points > 0 ? "+" : "−"}${Math.abs(points)} %`;
}

export class Answers {
    #list;
    #rows = [];

    constructor(list) {
        this.#list = list;
    }

    /** Show answers [{label, name, probability, before}]; `label` is the true class, -1 if nobody knows. */
    show(top, label) {
        while (this.#rows.length < top.length) this.#rows.push(this.#row());
        this.#rows.forEach((row, at) => {
            row.element.hidden = at >= top.length;
            if (at < top.length) fill(row, top[at], top[at].label === label);
        });
    }

    #row() {
        const element = this.#list.appendChild(document.createElement("li"));
        element.className = "answer";
        const parts = { element };
        for (const name of ["name", "truth", "probability", "change", "bar"]) {
            parts[name] = element.appendChild(document.createElement("span"));
            parts[name].className = name;
        }
        for (const name of ["level", "before"]) {
            parts[name] = parts.bar.appendChild(document.createElement("span"));
            parts[name].className = name;
        }
        return parts;
    }
}

function fill(row, { label, name, probability, before }, isTrue) {
    row.element.dataset.label = label;
    row.element.classList.toggle("true", isTrue);
    row.name.textContent = name || `class ${label}`;
    row.name.title = row.name.textContent;
    row.truth.textContent = isTrue ? "✓ true" : "";
    row.probability.textContent = percent(probability);
    row.change.textContent = change(probability, before);
    row.change.dataset.sign = Math.sign(Math.round(100 * (probability - before)));
    row.level.style.transform = `scaleX(${probability})`;
    row.before.style.left = `${100 * before}%`;
}
