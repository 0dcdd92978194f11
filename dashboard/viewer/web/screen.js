// Where everything stands: a canvas a map, a tile over it for each plane (what is clicked, scrolled and focused),
// and the 3D picture in the free quarter. All pictures share one scale in millimetres.

import { PLANES, spacing } from "./geometry.js";

const GAP = 4; // px between pictures
const PANEL = 236; // px, beside the pictures where there is room
const ROOMY = 860;
const NARROW = 230; // px, in which a slice's title and number leave no room for the mark in the middle
const EDGES = ["left", "right", "top", "bottom"];
const TITLES = { axial: "Axial", coronal: "Coronal", sagittal: "Sagittal" };

export class Screen {
  constructor(root, app) {
    this.root = root;
    this.app = app;
    this.views = root.querySelector(".views");
    this.stacks = [];
    this.watcher = new ResizeObserver(() => this.layout());
    this.watcher.observe(root);
  }

  close() {
    this.watcher.disconnect();
  }

  // A stack of pictures for each map, and the 3D picture where there is one map.
  hold(maps) {
    while (this.stacks.length > maps.length) this.stacks.pop().box.remove();
    while (this.stacks.length < maps.length) this.stacks.push(this.stack());
    this.stacks.forEach(({ heading }, n) => {
      heading.textContent = heading.title = maps[n].title ?? "";
      heading.hidden = maps.length < 2;
    });
    const alone = maps.length === 1;
    if (alone && !this.body) this.body = this.render();
    if (!alone) {
      this.body?.box.remove();
      this.body = null;
    }
  }

  arrange(scan) {
    this.scan = scan;
    this.size = scan.shape.map((count, axis) => count * spacing(scan.affine)[axis]);
    this.layout();
  }

  stack() {
    const box = element("div", "stack");
    const heading = element("h6");
    const pictures = element("div", "pictures");
    const canvas = element("canvas");
    canvas.setAttribute("aria-hidden", "true");
    pictures.append(canvas);
    const tiles = PLANES.map((plane) => new Tile(plane, this.app));
    pictures.append(...tiles.map(({ box: tile }) => tile));
    box.append(heading, pictures);
    this.views.append(box);
    return { box, heading, pictures, canvas, tiles };
  }

  render() {
    const box = element("div", "body");
    const canvas = element("canvas");
    const title = element("span", "title", "3D");
    box.tabIndex = 0;
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", "3D rendering; arrow keys turn it");
    box.append(canvas, title);
    this.stacks[0].pictures.append(box);
    new Turning(box, this.app);
    return { box, canvas };
  }

  canvas(n) {
    return this.stacks[n].canvas;
  }

  bodyCanvas() {
    return this.body?.canvas;
  }

  // Column widths and row heights follow the body's millimetres, so that a picture is neither stretched nor padded.
  layout() {
    if (!this.size) return;
    const full = document.fullscreenElement !== null && this.root.matches(":fullscreen");
    const wide = this.root.clientWidth >= ROOMY;
    this.root.classList.toggle("wide", wide);
    const width = this.root.clientWidth - (wide ? PANEL + 12 : 0) - (full ? 24 : 2);
    const height = full ? window.innerHeight - 150 : Math.min(Math.max(window.innerHeight - 250, 460), 900);
    const many = this.stacks.length > 1;
    if (many) this.beside(width, Math.max(height, 640));
    else this.square(width, height);
    this.app.draw();
  }

  // Axial above coronal, sagittal beside coronal, and the 3D picture in the quarter that is left.
  square(width, height) {
    const [x, y, z] = this.size;
    const scale = Math.min((width - GAP) / (x + y), (height - GAP) / (y + z));
    const [w, d, h] = [x, y, z].map((mm) => Math.max(1, Math.floor(mm * scale)));
    this.put(0, [w + GAP + d, d + GAP + h], {
      axial: [0, 0, w, d], coronal: [0, d + GAP, w, h], sagittal: [w + GAP, d + GAP, d, h],
    }, scale);
    if (this.body) place(this.body.box, [w + GAP, 0, d, d]);
  }

  // One stack of three planes a map, side by side.
  beside(width, height) {
    const [x, y, z] = this.size;
    const room = (width - GAP * (this.stacks.length - 1)) / this.stacks.length;
    const scale = Math.min(room / Math.max(x, y), (height - 2 * GAP) / (y + 2 * z));
    const [w, d, h] = [x, y, z].map((mm) => Math.max(1, Math.floor(mm * scale)));
    const boxes = { axial: [0, 0, w, d], coronal: [0, d + GAP, w, h], sagittal: [0, d + h + 2 * GAP, d, h] };
    this.stacks.forEach((_, n) => this.put(n, [Math.max(w, d), d + 2 * h + 2 * GAP], boxes, scale));
  }

  put(n, [width, height], boxes, scale) {
    const { pictures, tiles } = this.stacks[n];
    Object.assign(pictures.style, { width: `${width}px`, height: `${height}px` });
    for (const tile of tiles) tile.put(boxes[tile.plane.name], scale, this.scan);
    const shares = ([left, top, wide, high]) => [left / width, top / height, wide / width, high / height];
    this.app.columns[n]?.layout(Object.fromEntries(Object.entries(boxes).map(([name, box]) => [name, shares(box)])));
  }

  mark(voxel) {
    for (const { tiles } of this.stacks) for (const tile of tiles) tile.mark(voxel);
  }
}

// One plane's area: pointer, wheel and keys move the crosshair.
class Tile {
  constructor(plane, app) {
    this.plane = plane;
    this.app = app;
    this.box = element("div", "tile");
    this.box.tabIndex = 0;
    this.box.dataset.plane = plane.name;
    this.box.setAttribute("role", "slider");
    this.box.setAttribute("aria-label", `${TITLES[plane.name]} slice, seen from ${plane.from}`);
    this.title = element("span", "title");
    this.ruler = element("span", "ruler", "5 cm");
    const sides = [...plane.sides].map((side, n) => element("span", `side at-${EDGES[n]}`, side));
    this.box.append(this.title, this.ruler, element("span", "from", `seen from ${plane.from}`), ...sides);
    this.listen();
  }

  put(box, scale, scan) {
    place(this.box, box);
    this.narrow = box[2] < NARROW;
    this.shape = scan.shape;
    this.ruler.style.width = `${50 * scale}px`;
    this.box.setAttribute("aria-valuemin", 1);
    this.box.setAttribute("aria-valuemax", scan.shape[this.plane.across]);
  }

  mark(voxel) {
    const { across, horizontal, vertical, name } = this.plane;
    for (const [side, axis] of [["--x", horizontal], ["--y", vertical]])
      this.box.style.setProperty(side, `${100 - (100 * (voxel[axis] + 0.5)) / this.shape[axis]}%`);
    const at = `${voxel[across] + 1} / ${this.shape[across]}`;
    this.title.textContent = `${TITLES[name]} ${this.narrow ? voxel[across] + 1 : at}`;
    this.box.setAttribute("aria-valuenow", voxel[across] + 1);
    this.box.setAttribute("aria-valuetext", `slice ${at}`);
  }

  listen() {
    const { box, app } = this;
    box.addEventListener("pointerdown", (event) => this.press(event));
    box.addEventListener("contextmenu", (event) => event.preventDefault());
    box.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.deltaY) app.step(this.plane, event.deltaY < 0 ? 1 : -1);
    }, { passive: false });
    box.addEventListener("keydown", (event) => this.key(event));
  }

  // Up and down step through the slices of the focused plane.
  key(event) {
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10,
      Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const last = this.shape[this.plane.across];
    this.app.step(this.plane, Math.min(Math.max(steps[event.key], -last), last));
  }

  // The left button moves the crosshair, the right one the HU window: across its width, up and down its level.
  press(event) {
    const { box, app } = this;
    const start = { ...app.controls.window, x: event.clientX, y: event.clientY };
    const window = event.button === 2;
    if (event.button !== 0 && !window) return;
    box.setPointerCapture(event.pointerId);
    const drag = (at) => {
      if (!window) return app.move(this.voxel(at));
      const width = Math.max(1, start.width + 4 * (at.clientX - start.x));
      app.controls.windowTo({ width, level: start.level + 2 * (at.clientY - start.y) });
    };
    if (!window) drag(event);
    box.addEventListener("pointermove", drag);
    for (const end of ["pointerup", "pointercancel"])
      box.addEventListener(end, () => box.removeEventListener("pointermove", drag), { once: true });
  }

  voxel(event) {
    const { plane, shape } = this;
    const area = this.box.getBoundingClientRect();
    const right = (event.clientX - area.left) / area.width;
    const down = (event.clientY - area.top) / area.height;
    const voxel = [...this.app.voxel];
    voxel[plane.horizontal] = shape[plane.horizontal] - 1 - Math.floor(right * shape[plane.horizontal]);
    voxel[plane.vertical] = shape[plane.vertical] - 1 - Math.floor(down * shape[plane.vertical]);
    return voxel;
  }
}

// The 3D picture: drag or arrow keys turn it, the wheel brings it nearer.
class Turning {
  constructor(box, app) {
    this.app = app;
    box.addEventListener("pointerdown", (event) => {
      box.setPointerCapture(event.pointerId);
      let [x, y] = [event.clientX, event.clientY];
      const drag = (at) => {
        this.turn(at.clientX - x, at.clientY - y);
        [x, y] = [at.clientX, at.clientY];
      };
      box.addEventListener("pointermove", drag);
      box.addEventListener("pointerup", () => box.removeEventListener("pointermove", drag), { once: true });
    });
    box.addEventListener("wheel", (event) => {
      event.preventDefault();
      app.body?.zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
    }, { passive: false });
    box.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] }[event.key];
      if (!by) return;
      event.preventDefault();
      this.turn(...by);
    });
  }

  // Gathered, so that a slow machine turns once for many small drags.
  turn(right, up) {
    this.right = (this.right ?? 0) + right;
    this.up = (this.up ?? 0) + up;
    this.frame ??= requestAnimationFrame(() => {
      this.app.body?.turn(this.right, this.up);
      this.frame = this.right = this.up = undefined;
    });
  }
}

function element(tag, name = "", text = "") {
  return Object.assign(document.createElement(tag), { className: name, textContent: text });
}

function place(box, [left, top, width, height]) {
  Object.assign(box.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
}
