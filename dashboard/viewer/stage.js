// The stage: three linked slices on canvases. It draws what Python has cut and coloured,
// shows the values under the pointer, and sends one thing back: the voxel that was chosen.

const stages = new WeakMap();
const settings = { opacity: 70, outlines: "all" }; // outlive a stage, as from one case to the next
const SLIDER = 22; // height in px of the range input under each picture
const TALLEST = 660; // px, so that the stage of a long scan still fits a screen

export default function ({ data, parentElement, setTriggerValue }) {
  let stage = stages.get(parentElement);
  if (!stage || !parentElement.contains(stage.root)) {
    stage?.close();
    stage = new Stage(parentElement.querySelector(".stage"));
    stages.set(parentElement, stage);
  }
  stage.send = (voxel) => setTriggerValue("move", voxel);
  stage.update(data);
  return () => {
    stage.close();
    stages.delete(parentElement);
  };
}

class Stage {
  constructor(root) {
    this.root = root;
    this.panes = [...root.querySelectorAll(".pane")].map((section) => new Pane(section, this));
    this.watcher = new ResizeObserver(() => this.layout());
    this.watcher.observe(root.parentElement);
    this.opacity = root.querySelector(".opacity input");
    this.outlining = root.querySelector(".outlining select");
    for (const [name, control] of Object.entries({ opacity: this.opacity, outlines: this.outlining })) {
      control.value = settings[name];
      control.addEventListener("input", () => {
        settings[name] = control.value;
        this.draw();
      });
    }
    root.querySelector(".peak").addEventListener("click", () => this.move(this.data.peak));
  }

  close() {
    this.watcher.disconnect();
    clearTimeout(this.patience);
  }

  update(data) {
    if (this.data?.scene !== data.scene) this.pending = null;
    this.data = data;
    clearTimeout(this.patience);
    this.waiting = false;
    if (!this.pending) this.cursor = data.cursor;
    for (const pane of this.panes) pane.load(data.planes[pane.name]);
    this.root.querySelector(".convention").textContent = data.convention;
    this.legend(data.legend);
    this.root.querySelector(".opacity").hidden = !data.legend;
    this.root.querySelector(".peak").hidden = !data.peak;
    this.root.querySelector(".outlining").hidden = !data.planes.axial.labels;
    this.root.querySelector(".tools").hidden = !data.legend && !data.planes.axial.labels;
    this.layout();
    this.remember();
    if (this.pending) this.deliver();
  }

  // One request at a time: while Python cuts a slice, only the newest wish is kept.
  move(cursor) {
    this.cursor = cursor;
    this.pending = cursor;
    this.draw();
    if (!this.waiting) this.deliver();
  }

  deliver() {
    const voxel = this.pending;
    this.pending = null;
    this.waiting = true;
    this.patience = setTimeout(() => {
      this.waiting = false;
      if (this.pending) this.deliver();
    }, 3000);
    this.send(voxel);
  }

  // Replaced, not pushed: the back button should leave the case, not undo every scroll step.
  remember() {
    const link = new URL(window.location);
    const at = this.data.cursor.join(".");
    if (link.searchParams.get("at") === at) return;
    link.searchParams.set("at", at);
    window.history.replaceState(window.history.state, "", link);
  }

  // Column widths and row heights follow the body's millimetres, so all pictures share one scale.
  layout() {
    if (!this.data) return;
    const [x, y, z] = this.data.shape.map((n, axis) => n * this.data.spacing[axis]);
    const width = this.root.parentElement.clientWidth - 18;
    const height = TALLEST - 18 - 2 * SLIDER;
    const wide = width >= 480;
    this.scale = wide ? Math.min(width / (x + y), height / (y + z)) : width / Math.max(x, y);
    const px = (mm) => Math.max(1, Math.round(mm * this.scale));
    this.root.style.gridTemplateColumns = wide ? `${px(x)}px ${Math.max(px(y), 200)}px` : "100%";
    this.root.style.gridTemplateRows = wide ? `auto ${Math.max(px(y) + SLIDER, 200)}px ${px(z) + SLIDER}px` : "";
    for (const pane of this.panes) pane.resize(this.scale);
    this.draw();
  }

  draw() {
    for (const pane of this.panes) pane.draw();
    const values = this.panes[0].values(this.cursor) ?? {};
    const list = this.root.querySelector(".values");
    list.replaceChildren();
    const rows = [["Position", this.millimetres(this.cursor)], ["Organ", values.organ],
      ["CT value", values.hu], ["Attribution", values.attribution]];
    for (const [name, text] of rows) {
      if (text === undefined) continue;
      const term = document.createElement("dt");
      const detail = document.createElement("dd");
      term.textContent = name;
      detail.append(...(Array.isArray(text) ? text : [text]));
      list.append(term, detail);
    }
  }

  millimetres(voxel) {
    const letters = ["RL", "AP", "SI"];
    return this.world(voxel)
      .map((mm, axis) => `${letters[axis][mm < 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)}`)
      .join("  ") + " mm";
  }

  world(voxel) {
    return [0, 1, 2].map((row) => {
      const [a, b, c, origin] = this.data.affine[row];
      return a * voxel[0] + b * voxel[1] + c * voxel[2] + origin;
    });
  }

  legend(legend) {
    const box = this.root.querySelector(".legend");
    box.replaceChildren();
    if (!legend) return;
    const add = (name, text, parent = box) => {
      const element = document.createElement("div");
      element.className = name;
      if (text) element.textContent = text;
      parent.append(element);
      return element;
    };
    add("name", legend.title);
    add("bar").style.background = legend.ramp;
    const ends = add("ends");
    for (const text of legend.ends) {
      const span = document.createElement("span");
      span.textContent = text;
      ends.append(span);
    }
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = legend.note;
    note.title = legend.exact;
    box.append(note);
  }

  organ(label) {
    const organ = this.data.organs[label];
    if (!organ) return undefined;
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = organ.color;
    return [swatch, organ.title];
  }
}

class Pane {
  constructor(section, stage) {
    this.name = section.dataset.plane;
    this.stage = stage;
    this.section = section;
    this.canvas = this.make("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.title = this.make("div", "title");
    this.marks = ["left", "right", "top", "bottom"].map((side) => this.make("div", `mark ${side}`));
    this.slider = this.make("input");
    this.slider.type = "range";
    this.slider.setAttribute("aria-label", `${this.name} slice`);
    this.tip = this.make("div", "tip");
    this.turned = 0;
    this.listen();
  }

  make(tag, name = "") {
    const element = document.createElement(tag);
    if (name) element.className = name;
    this.section.append(element);
    return element;
  }

  listen() {
    const drag = (event) => {
      if (event.buttons & 1) this.stage.move(this.voxel(event));
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      drag(event);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      drag(event);
      this.hover(event);
    });
    this.canvas.addEventListener("pointerleave", () => this.hover(null));
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.slider.addEventListener("input", () => this.to(Number(this.slider.value)));
  }

  wheel(event) {
    event.preventDefault();
    this.turned += event.deltaMode === 0 ? event.deltaY / 60 : event.deltaY;
    const steps = Math.trunc(this.turned);
    this.turned -= steps;
    if (steps) this.to(this.stage.cursor[this.plane.across] - steps);
  }

  key(event) {
    const step = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.to(this.stage.cursor[this.plane.across] + step);
  }

  to(index) {
    const last = this.stage.data.shape[this.plane.across] - 1;
    const cursor = [...this.stage.cursor];
    cursor[this.plane.across] = Math.min(Math.max(index, 0), last);
    if (cursor[this.plane.across] !== this.stage.cursor[this.plane.across]) this.stage.move(cursor);
  }

  async load(plane) {
    const data = this.stage.data;
    this.plane = plane;
    [this.columns, this.rows] = [data.shape[plane.horizontal], data.shape[plane.vertical]];
    this.size = [plane.horizontal, plane.vertical].map((axis) => data.shape[axis] * data.spacing[axis]);
    ["left", "right", "top", "bottom"].forEach((side, n) => (this.marks[n].textContent = plane[side]));
    this.slider.max = data.shape[plane.across] - 1;
    const stamp = (this.stamp = Symbol());
    const [grey, color, hu, labels, attribution] = await Promise.all([
      picture(plane.grey), picture(plane.color), unpack(plane.hu, Int16Array),
      unpack(plane.labels, Uint16Array), unpack(plane.attribution, Int8Array),
    ]);
    if (stamp !== this.stamp) return; // a newer slice came while this one was being decoded
    if (labels !== this.labels) this.paths = labels ? outlines(labels, this.columns, this.rows) : null;
    Object.assign(this, { grey, color, hu, labels, attribution, index: plane.index });
    this.stage.draw();
  }

  resize(scale) {
    const [width, height] = this.size.map((mm) => Math.max(1, Math.round(mm * scale)));
    const dense = window.devicePixelRatio || 1;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
  }

  draw() {
    if (!this.plane) return;
    const { cursor, data } = this.stage;
    const index = cursor[this.plane.across];
    this.slider.value = index;
    this.title.innerHTML = "";
    const name = document.createElement("b");
    name.textContent = this.name[0].toUpperCase() + this.name.slice(1);
    this.title.append(name, ` ${index + 1}/${data.shape[this.plane.across]}`);
    this.canvas.setAttribute("aria-label", `${this.name} slice ${index + 1}`);
    if (!this.grey) return;
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    context.clearRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.grey, 0, 0, width, height);
    if (this.color && data.legend) {
      context.globalAlpha = this.stage.opacity.value / 100;
      context.drawImage(this.color, 0, 0, width, height);
      context.globalAlpha = 1;
    }
    if (this.paths) this.outline(context);
    this.crosshair(context);
    this.ruler(context);
    this.hover();
  }

  outline(context) {
    const dense = window.devicePixelRatio || 1;
    const grid = new DOMMatrix([this.canvas.width / this.columns, 0, 0, this.canvas.height / this.rows, 0, 0]);
    context.lineJoin = context.lineCap = "round";
    const { data, outlining } = this.stage;
    const wanted = { all: (label) => label in data.organs, target: (label) => label === data.target, none: () => false };
    for (const [label, path] of [...this.paths].filter(([label]) => wanted[outlining.value](label))) {
      const placed = new Path2D();
      placed.addPath(path, grid);
      cased(context, data.organs[label].color, 1.4 * dense, 0.7 * dense, placed);
    }
  }

  crosshair(context) {
    const { cursor, data } = this.stage;
    const dense = window.devicePixelRatio || 1;
    const { horizontal, vertical } = this.plane;
    const x = ((data.shape[horizontal] - 0.5 - cursor[horizontal]) / this.columns) * this.canvas.width;
    const y = ((data.shape[vertical] - 0.5 - cursor[vertical]) / this.rows) * this.canvas.height;
    const gap = 9 * dense;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, this.canvas.width, y],
      [x, 0, x, y - gap], [x, y + gap, x, this.canvas.height]]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    cased(context, "rgba(130, 255, 190, 0.85)", dense, 0.6 * dense);
  }

  ruler(context) {
    const dense = window.devicePixelRatio || 1;
    const length = (50 / this.size[0]) * this.canvas.width;
    const [x, y] = [8 * dense, this.canvas.height - 8 * dense];
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + length, y);
    cased(context, "#e8eaed", 2 * dense, dense);
    context.font = `${11 * dense}px sans-serif`;
    context.lineWidth = 3 * dense;
    context.strokeStyle = "rgba(0, 0, 0, 0.6)";
    context.strokeText("5 cm", x, y - 5 * dense);
    context.fillStyle = "#e8eaed";
    context.fillText("5 cm", x, y - 5 * dense);
  }

  voxel(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.rows);
    const cursor = [...this.stage.cursor];
    cursor[this.plane.horizontal] = this.columns - 1 - Math.min(Math.max(column, 0), this.columns - 1);
    cursor[this.plane.vertical] = this.rows - 1 - Math.min(Math.max(row, 0), this.rows - 1);
    return cursor;
  }

  // What the loaded slice says about a voxel; nothing while its slice is still on its way.
  values(voxel) {
    if (!this.plane || !this.hu || this.index !== voxel[this.plane.across]) return undefined;
    const row = this.rows - 1 - voxel[this.plane.vertical];
    const at = row * this.columns + this.columns - 1 - voxel[this.plane.horizontal];
    const share = this.attribution && Math.round((this.attribution[at] / 127) * 100);
    return {
      organ: this.labels ? this.stage.organ(this.labels[at]) : undefined,
      hu: `${signed(this.hu[at], false)} ${this.stage.data.unit}`.trim(),
      attribution: share === undefined || share === null ? undefined
        : `${signed(share, true)} %`,
    };
  }

  // Called without an event, it says again what lies under the pointer: another slice may have come.
  hover(event = this.pointer) {
    this.pointer = event;
    const voxel = event && this.voxel(event);
    const values = voxel && this.values(voxel);
    this.tip.style.display = values ? "block" : "none";
    if (!values) return;
    const lines = [values.organ, [[values.hu, values.attribution].filter(Boolean).join(" · ")],
      [this.stage.millimetres(voxel)]];
    this.tip.replaceChildren(...lines.filter(Boolean).map((parts) => {
      const line = document.createElement("div");
      line.append(...parts);
      return line;
    }));
    const box = this.section.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const [wide, high] = [this.tip.offsetWidth, this.tip.offsetHeight];
    const left = x + 16 + wide > box.width ? x - 16 - wide : x + 16;
    this.tip.style.left = `${Math.max(left, 2)}px`;
    this.tip.style.top = `${y + 16 + high > box.height ? y - 16 - high : y + 16}px`;
  }
}

// A line in a darker casing, so that it is seen on white bone as on black air.
function cased(context, color, width, margin, path) {
  const line = path ? () => context.stroke(path) : () => context.stroke();
  context.strokeStyle = "rgba(0, 0, 0, 0.5)";
  context.lineWidth = width + 2 * margin;
  line();
  context.strokeStyle = color;
  context.lineWidth = width;
  line();
}

function signed(number, plus) {
  return (number < 0 ? "−" : plus && number > 0 ? "+" : "") + Math.abs(number);
}

// Slices come back often (two of three stay when one moves), so what was decoded is kept.
const decoded = new Map();

function kept(key, make) {
  if (!decoded.has(key)) {
    decoded.set(key, make());
    if (decoded.size > 90) decoded.delete(decoded.keys().next().value);
  }
  return decoded.get(key);
}

function picture(uri) {
  if (!uri) return null;
  return kept(uri, async () => {
    const image = new Image();
    image.src = uri;
    await image.decode();
    return image;
  });
}

function unpack(text, Kind) {
  if (!text) return null;
  return kept(text, async () => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Kind(await new Response(stream).arrayBuffer());
  });
}

// The pixel edges between different labels, as one path for each label, in units of pixels.
function outlines(labels, columns, rows) {
  const paths = new Map();
  const at = (row, column) =>
    row < 0 || column < 0 || row >= rows || column >= columns ? 0 : labels[row * columns + column];
  const add = (label, x0, y0, x1, y1) => {
    if (!label) return;
    if (!paths.has(label)) paths.set(label, new Path2D());
    paths.get(label).moveTo(x0, y0);
    paths.get(label).lineTo(x1, y1);
  };
  scan(rows, columns, (r, c) => [at(r - 1, c), at(r, c)], (label, r, from, to) => add(label, from, r, to, r));
  scan(columns, rows, (c, r) => [at(r, c - 1), at(r, c)], (label, c, from, to) => add(label, c, from, c, to));
  return paths;
}

function scan(lines, length, pair, emit) {
  for (let line = 0; line <= lines; line++) {
    let start = 0;
    let [first, second] = pair(line, 0);
    for (let at = 1; at <= length; at++) {
      const [a, b] = at < length ? pair(line, at) : [-1, -1];
      if (a === first && b === second) continue;
      if (first !== second) {
        emit(first, line, start, at);
        emit(second, line, start, at);
      }
      [start, first, second] = [at, a, b];
    }
  }
}
