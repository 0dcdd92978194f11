// Volumes by address: fetched, decompressed by the browser itself, and read at any place of the world.

import { inverse, transform } from "./geometry.js";

const KINDS = { 2: Uint8Array, 4: Int16Array, 256: Int8Array, 512: Uint16Array };
const KEPT = 12;
const loaded = new Map();

export class Expired extends Error {}

// One volume for one id, however often it is asked for; the least lately used are let go.
export function load({ id, url }) {
  const volume = loaded.get(id) ?? read(url);
  loaded.delete(id);
  loaded.set(id, volume);
  volume.catch(() => loaded.delete(id));
  if (loaded.size > KEPT) loaded.delete(loaded.keys().next().value);
  return volume;
}

async function read(url) {
  const answer = await fetch(url, { credentials: "same-origin", cache: "no-store" });
  if (answer.status === 403) throw new Expired("the address has expired");
  if (!answer.ok) throw new Error(`a volume could not be loaded (${answer.status})`);
  const stream = answer.body.pipeThrough(new DecompressionStream("gzip"));
  return new Volume(await new Response(stream).arrayBuffer());
}

export class Volume {
  // buffer: a whole NIfTI-1 file, little-endian, as nibabel writes it.
  constructor(buffer) {
    const header = new DataView(buffer, 0, 348);
    this.buffer = buffer;
    this.shape = [42, 44, 46].map((at) => header.getInt16(at, true));
    this.affine = Array.from({ length: 12 }, (_, n) => header.getFloat32(280 + 4 * n, true)).concat(0, 0, 0, 1);
    this.toVoxel = inverse(this.affine);
    const [i, j, k] = this.shape;
    const Kind = KINDS[header.getInt16(70, true)];
    this.array = new Kind(buffer, header.getFloat32(108, true), i * j * k);
  }

  voxel(world) {
    return transform(this.toVoxel, world);
  }

  world(voxel) {
    return transform(this.affine, voxel);
  }

  // The value of the voxel whose centre is nearest to a place, 0 outside the grid.
  nearest(world) {
    return this.at(this.voxel(world).map(Math.round));
  }

  at([i, j, k]) {
    const [width, height, depth] = this.shape;
    const inside = i >= 0 && j >= 0 && k >= 0 && i < width && j < height && k < depth;
    return inside ? this.array[i + width * (j + height * k)] : 0;
  }

  // Between voxel centres, linearly, as the screen shows it.
  linear(world) {
    const place = this.voxel(world);
    if (place.some((at, axis) => at < -0.5 || at > this.shape[axis] - 0.5)) return 0;
    const inside = place.map((at, axis) => Math.min(Math.max(at, 0), this.shape[axis] - 1));
    const low = inside.map(Math.floor);
    let sum = 0;
    for (let corner = 0; corner < 8; corner++) {
      const step = [corner & 1, (corner >> 1) & 1, corner >> 2];
      const weight = step.reduce((product, up, axis) => {
        const rest = inside[axis] - low[axis];
        return product * (up ? rest : 1 - rest);
      }, 1);
      if (weight) sum += weight * this.at(low.map((at, axis) => at + step[axis]));
    }
    return sum;
  }
}

// Of every label: how many voxels, and the world position of the voxel nearest to its centre of gravity.
// The centre itself may lie outside a label that is bent, as ribs are.
export function places(labels) {
  const [width, height] = labels.shape;
  const sums = new Map();
  const each = (visit) => labels.array.forEach((label, at) => {
    if (!label) return;
    visit(label, [at % width, Math.floor(at / width) % height, Math.floor(at / (width * height))]);
  });
  each((label, voxel) => {
    if (!sums.has(label)) sums.set(label, { count: 0, sum: [0, 0, 0], distance: Infinity });
    const entry = sums.get(label);
    entry.count++;
    for (let axis = 0; axis < 3; axis++) entry.sum[axis] += voxel[axis];
  });
  each((label, voxel) => {
    const entry = sums.get(label);
    const distance = voxel.reduce((sum, at, axis) => sum + (at - entry.sum[axis] / entry.count) ** 2, 0);
    if (distance < entry.distance) Object.assign(entry, { distance, centre: voxel });
  });
  return new Map([...sums].map(([label, { count, centre }]) => [label, { count, centre: labels.world(centre) }]));
}
