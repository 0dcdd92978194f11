// The list of organs: search, show and hide each, jump to its centre.

import { places } from "./volumes.js";

const hidden = new Set(); // names; outlives a viewer, so that the next case looks alike
const found = new WeakMap(); // label map -> where its organs are

export class Organs {
  constructor(root, app) {
    this.root = root.querySelector(".organs");
    this.app = app;
    this.list = this.root.querySelector("ul");
    this.search = this.root.querySelector("input");
    this.search.addEventListener("input", () => this.filter());
    for (const button of this.root.querySelectorAll("[data-show]"))
      button.addEventListener("click", () => this.showOnly(button.dataset.show));
  }

  // What the pictures need: names and colours.
  know(data) {
    this.organs = data.organs;
    this.target = data.target;
  }

  // The list of what is there, which takes a look at every voxel.
  update(data, maps) {
    const labels = maps.find((map) => map.labels)?.labels;
    if (labels && !found.has(labels)) found.set(labels, places(labels));
    this.places = labels ? found.get(labels) : new Map();
    this.root.hidden = !labels;
    const order = (organ) => (organ.id === data.target ? 0 : 1);
    const present = data.organs.filter(({ id }) => this.places.has(id)).sort((a, b) => order(a) - order(b));
    this.list.replaceChildren(...present.map((organ) => this.row(organ)));
    this.filter();
  }

  row(organ) {
    const row = document.createElement("li");
    row.dataset.name = `${organ.title} ${organ.group}`.toLowerCase();
    row.classList.toggle("target", organ.id === this.target);
    const eye = Object.assign(document.createElement("input"), { type: "checkbox", checked: !hidden.has(organ.name) });
    eye.setAttribute("aria-label", `Show ${organ.title}`);
    eye.style.setProperty("--organ", organ.color);
    eye.addEventListener("change", () => {
      hidden[eye.checked ? "delete" : "add"](organ.name);
      this.app.changed();
    });
    const jump = Object.assign(document.createElement("button"), { type: "button", textContent: organ.title });
    jump.title = `Move the crosshair to the centre of ${organ.title}`;
    jump.addEventListener("click", () => this.app.go(this.places.get(organ.id)));
    row.append(eye, jump);
    return row;
  }

  filter() {
    const wanted = this.search.value.trim().toLowerCase();
    for (const row of this.list.children) row.hidden = !row.dataset.name.includes(wanted);
  }

  showOnly(which) {
    const shown = { all: () => true, target: ({ id }) => id === this.target, none: () => false }[which];
    for (const organ of this.organs) hidden[shown(organ) ? "delete" : "add"](organ.name);
    this.update(this.app.data, this.app.maps);
    this.app.changed();
  }

  // Four bytes a label value: red, green, blue, and 255 where the organ is shown.
  colors() {
    const colors = new Uint8Array(4 * (1 + Math.max(0, ...this.organs.map(({ id }) => id))));
    for (const { id, name, color } of this.organs) {
      if (!id) continue; // background has no outline
      const parts = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
      colors.set([...parts, hidden.has(name) ? 0 : 255], 4 * id);
    }
    return colors;
  }

  titles() {
    const titles = [];
    for (const { id, title } of this.organs) titles[id] = title;
    return Array.from(titles, (title) => title ?? "");
  }

  named(label) {
    return this.organs.find(({ id }) => id === label);
  }
}
