// The viewer itself: what is loaded, where the crosshair stands, and who is told when either changes.

import { Body } from "./body.js";
import { Controls } from "./controls.js";
import { Organs } from "./organs.js";
import { Planes } from "./planes.js";
import { Readout } from "./readout.js";
import { Screen } from "./screen.js";
import { Expired, load } from "./volumes.js";

// These outlive a viewer, as from one case to the next or to another page and back.
const positions = new Map(); // by scan: the voxel of the crosshair, on the whole grid
const followed = new Map(); // by place on the page: the last of Python's moves that was made

const BODY_REST = 150; // ms without a move before the costlier 3D picture follows
const RENEWAL = 5000; // ms between two requests for fresh addresses

export class App {
  // early: volumes asked for before this module was there, see load().
  constructor(root, library, early) {
    this.root = root;
    this.library = library;
    this.early = early;
    this.columns = [];
    this.work = Promise.resolve();
    this.screen = new Screen(root, this);
    this.controls = new Controls(root, this);
    this.organs = new Organs(root, this);
    this.readout = new Readout(root, this);
  }

  update(data, send) {
    this.data = data;
    this.send = send;
    this.unit = data.unit;
    this.controls.update(data);
    this.root.querySelector(".words").textContent = data.words;
    const loading = this.load(data);
    loading.catch(() => {}); // told below, in turn
    this.work = this.work.then(() => this.show(data, loading)).catch((error) => this.fault(error));
  }

  async load(data) {
    const maybe = (parcel) => parcel && load(parcel, this.early);
    const [scan, ...pairs] = await Promise.all([
      maybe(data.scan), ...data.maps.flatMap(({ labels, attribution }) => [maybe(labels), maybe(attribution)]),
    ]);
    const maps = data.maps.map((map, n) => ({ ...map, labels: pairs[2 * n], attribution: pairs[2 * n + 1] }));
    return { scan, maps };
  }

  // The canvases open, which compiles NiiVue's shaders, while the volumes are on their way.
  async show(data, loading) {
    if (data !== this.data || this.closed) return;
    const library = await this.library;
    this.screen.hold(data.maps);
    await this.columnsFor(library, data.maps.length);
    const { scan, maps } = await loading;
    if (data !== this.data || this.closed) return;
    this.place(scan, data);
    this.maps = maps;
    this.screen.arrange(scan);
    await this.fill(library, data, scan, maps);
    this.organs.know(data);
    this.restyle();
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve))); // the planes are seen first
    this.root.dataset.state = "planes";
    if (this.closed || data !== this.data) return;
    this.organs.update(data, maps);
    await this.bodyFor(library, scan, maps, data);
    if (!this.closed) this.root.dataset.state = "ready";
  }

  // As many canvases of planes as there are maps; those of the turn before are used again.
  async columnsFor(library, count) {
    while (this.columns.length > count) this.columns.pop().close();
    while (this.columns.length < count) {
      const canvas = this.screen.canvas(this.columns.length);
      const planes = await Planes.open(library, canvas, () => this.send("lacks", "context"));
      if (this.closed) return planes.close(); // while it opened, the page went on
      this.columns.push(planes);
    }
  }

  async fill(library, data, scan, maps) {
    for (const [n, planes] of this.columns.entries()) {
      if (planes.volume !== scan) await planes.show(library, scan);
      const ids = JSON.stringify([data.scan.id, data.maps[n].labels?.id, data.maps[n].attribution?.id]);
      if (planes.ids !== ids) planes.overlay(maps[n].labels, maps[n].attribution);
      planes.ids = ids;
      planes.palettes(data.palettes);
    }
  }

  async bodyFor(library, scan, maps, data) {
    const canvas = this.screen.bodyCanvas();
    if (!canvas) {
      this.body?.close();
      this.body = null;
      return;
    }
    this.body ??= await Body.open(library, canvas);
    if (this.closed) return this.body.close();
    const ids = JSON.stringify(data.maps[0].labels ? [data.maps[0].labels.id, data.maps[0].attribution?.id]
      : [data.scan.id, data.maps[0].attribution?.id]);
    if (this.body.ids !== ids) await this.body.show(scan, maps[0].labels, maps[0].attribution);
    this.body.ids = ids;
    this.restyleBody();
    this.body.mark(this.world());
  }

  // ---- the crosshair

  place(scan, data) {
    this.scan = scan;
    this.origin = data.scan.origin;
    const asked = data.at && followed.get(data.key) !== data.at.serial;
    if (data.at) followed.set(data.key, data.at.serial);
    const known = positions.get(data.scan.source) ?? data.start;
    const voxel = asked ? scan.voxel(data.at.mm) : known.map((at, axis) => at - this.origin[axis]);
    this.voxel = this.inside(voxel);
    this.remember();
  }

  inside(voxel) {
    return voxel.map((at, axis) => Math.min(Math.max(Math.round(at), 0), this.scan.shape[axis] - 1));
  }

  world() {
    return this.scan.world(this.voxel);
  }

  go(world) {
    this.move(this.scan.voxel(world));
  }

  move(voxel) {
    if (!this.scan) return;
    const next = this.inside(voxel);
    if (next.every((at, axis) => at === this.voxel[axis])) return;
    this.voxel = next;
    this.draw();
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.rest(), BODY_REST);
  }

  step(plane, by) {
    const next = [...this.voxel];
    next[plane.across] += by;
    this.move(next);
  }

  rest() {
    this.remember();
    this.body?.mark(this.world());
    if (this.data.tell) this.send("move", this.wholeVoxel());
  }

  wholeVoxel() {
    return this.voxel.map((at, axis) => at + this.origin[axis]);
  }

  // Replaced, not pushed: the back button should leave the case, not undo every step.
  remember() {
    positions.set(this.data.scan.source, this.wholeVoxel());
    const link = new URL(window.location);
    const at = this.wholeVoxel().join(".");
    if (link.searchParams.get("at") === at) return;
    link.searchParams.set("at", at);
    window.history.replaceState(window.history.state, "", link);
  }

  // ---- drawing

  // Once a frame, however many events ask for it.
  draw() {
    if (this.frame || this.closed) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      if (this.closed || !this.scan) return;
      for (const planes of this.columns) planes.draw(this.voxel);
      this.screen.mark(this.voxel);
      this.readout.update();
    });
  }

  restyle() {
    if (!this.scan) return;
    const { look } = this.controls;
    const colors = this.organs.colors();
    for (const planes of this.columns) {
      planes.window(this.controls.window);
      planes.organs(colors);
      planes.look({ ...look, target: this.data.target });
    }
    this.draw();
  }

  restyleBody() {
    if (!this.body) return;
    const { signed, positive, negative, absolute } = { ...this.controls.look, ...this.data.palettes };
    this.body.palette(signed ? positive : absolute, signed ? negative : absolute);
    this.body.attribution(this.controls.look.opacity);
    this.body.organs(this.organs.colors(), this.organs.titles());
    this.body.refresh();
  }

  // The 3D picture follows a slider once it rests.
  changed() {
    this.restyle();
    this.readout.update();
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.restyleBody(), BODY_REST);
  }

  // ---- the end

  fault(error) {
    if (this.closed) return;
    if (error instanceof Expired && Date.now() - (this.renewed ?? 0) > RENEWAL) {
      this.renewed = Date.now();
      this.send("renew", this.renewed);
      return;
    }
    console.error(error);
    this.root.dataset.state = "fault";
    this.root.querySelector(".words").textContent = "The scan could not be loaded. Reload the page to try again.";
  }

  close() {
    this.closed = true;
    clearTimeout(this.resting);
    clearTimeout(this.settling);
    cancelAnimationFrame(this.frame);
    this.screen.close();
    for (const planes of this.columns) planes.close();
    this.body?.close();
    this.columns = [];
  }
}
