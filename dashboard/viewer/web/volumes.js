// Volumes by address: fetched, and read at any place of the world.

import { inverse, multiply, spacing, texture, transform, voxels } from "./geometry.js";

const KINDS = { 2: Uint8Array, 4: Int16Array, 256: Int8Array, 512: Uint16Array };
const KEPT = 12;
const loaded = new Map();

export class Expired extends Error {}

// One volume for one id, however often it is asked for; the least lately used are let go.
// early: requests that are already on their way, by address; each answer is read once.
export function load({ id, url }, early = new Map()) {
  const volume = loaded.get(id) ?? read(url, early);
  loaded.delete(id);
  loaded.set(id, volume);
  volume.catch(() => loaded.delete(id));
  if (loaded.size > KEPT) loaded.delete(loaded.keys().next().value);
  return volume;
}

async function read(url, early) {
  const request = early.get(url) ?? fetch(url, { credentials: "same-origin", cache: "no-store" });
  early.delete(url);
  const answer = await request;
  if (answer.status === 403) throw new Expired("the address has expired");
  if (!answer.ok) throw new Error(`a volume could not be loaded (${answer.status})`);
  return new Volume(await answer.arrayBuffer());
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
}

// The same box of the world on a grid of another shape, every voxel the nearest of the volume, as a NIfTI file.
export function regridded(volume, shape) {
  const Kind = volume.array.constructor;
  const [i, j, k] = shape;
  const buffer = new ArrayBuffer(352 + Kind.BYTES_PER_ELEMENT * i * j * k);
  new Uint8Array(buffer).set(new Uint8Array(volume.buffer, 0, 352));
  const header = new DataView(buffer);
  const affine = multiply(volume.affine, multiply(voxels(volume.shape), texture(shape)));
  shape.forEach((size, axis) => header.setInt16(42 + 2 * axis, size, true));
  spacing(affine).forEach((size, axis) => header.setFloat32(80 + 4 * axis, size, true));
  header.setFloat32(108, 352, true);
  header.setInt16(252, 0, true); // the sform alone says where it lies
  affine.slice(0, 12).forEach((value, n) => header.setFloat32(280 + 4 * n, value, true));
  const steps = shape.map((size, axis) => Array.from({ length: size }, (_, at) =>
    Math.floor(((at + 0.5) * volume.shape[axis]) / size)));
  const values = new Kind(buffer, 352);
  let at = 0;
  for (const z of steps[2]) for (const y of steps[1]) for (const x of steps[0]) values[at++] = volume.at([x, y, z]);
  return buffer;
}

// Of every label: the world position of its voxel nearest to its centre of gravity. The centre itself may lie
// outside a label that is bent, as ribs are. Plain loops over plain arrays: a scan has millions of voxels.
export function places(labels) {
  const [counts, x, y, z, distances, nearest] = Array.from({ length: 6 }, () => new Float64Array(65536));
  each(labels, (label, i, j, k) => {
    counts[label]++;
    x[label] += i;
    y[label] += j;
    z[label] += k;
  });
  const found = [];
  for (let label = 1; label < counts.length; label++) {
    if (!counts[label]) continue;
    found.push(label);
    for (const sums of [x, y, z]) sums[label] /= counts[label];
    distances[label] = Infinity;
  }
  each(labels, (label, i, j, k, at) => {
    const distance = (i - x[label]) ** 2 + (j - y[label]) ** 2 + (k - z[label]) ** 2;
    if (distance >= distances[label]) return;
    distances[label] = distance;
    nearest[label] = at;
  });
  const [width, height] = labels.shape;
  const voxel = (at) => [at % width, Math.floor(at / width) % height, Math.floor(at / (width * height))];
  return new Map(found.map((label) => [label, labels.world(voxel(nearest[label]))]));
}

function each({ array, shape: [width, height, depth] }, visit) {
  let at = 0;
  for (let k = 0; k < depth; k++)
    for (let j = 0; j < height; j++)
      for (let i = 0; i < width; i++, at++) if (array[at]) visit(array[at], i, j, k, at);
}
