// Three linked planes on one canvas: NiiVue's geometry, layout and markers, with a slice shader of ours.
// NiiVue by itself colours a copy of every volume, resamples overlays to the scan's grid and differentiates it all,
// at each change of the HU window: ten seconds and more for 256³ voxels without a graphics card. Here the voxels lie
// in textures as they came, each on its own grid with a matrix, and every change of window, opacity, palette or
// visibility is a number handed over. NiiVue itself gets a frame: a volume of 2³ voxels in the place of the scan.

import { PLANES, columns, multiply, texture, voxels } from "./geometry.js";
import { SHADER } from "./shader.js";
import { regridded } from "./volumes.js";

// NiiVue uses the units up to 10; those above serve only its editing tools, which are not used here.
const UNITS = { scan: 11, attribution: 12, labels: 13, organs: 14 };

const OPTIONS = {
  isRadiologicalConvention: true,
  sagittalNoseLeft: true,
  isOrientationTextVisible: false, // the tiles write it, legible over bone too
  dragAndDropEnabled: false,
  interactive: false, // app.js listens itself: NiiVue's keys would change what is shown
  isSliceMM: false,
  isResizeCanvas: true,
  loadingText: "",
  logLevel: "error",
  backColor: [0, 0, 0, 1],
  crosshairWidth: 0, // the tiles draw it: a line of one pixel at every scale
};

export class Planes {
  // lost: called when the browser takes the WebGL context back, as it does when the graphics driver fails.
  static async open(library, canvas, lost) {
    const planes = new Planes();
    canvas.addEventListener("webglcontextlost", () => planes.closed || lost());
    planes.view = new library.Niivue(OPTIONS);
    await planes.view.attachToCanvas(canvas, false);
    planes.view.setCustomSliceShader(SHADER);
    planes.textures = {};
    return planes;
  }

  get gl() {
    return this.view.gl;
  }

  async show(library, volume) {
    const frame = await library.NVImage.loadFromUrl({ url: regridded(volume, [2, 2, 2]), name: "frame.nii" });
    this.volume = volume;
    for (const old of [...this.view.volumes]) this.view.removeVolume(old);
    const { gl } = this;
    this.fresh("scan", gl.TEXTURE_3D, gl.LINEAR);
    gl.texImage3D(gl.TEXTURE_3D, 0, gl.R16F, ...volume.shape, 0, gl.RED, gl.HALF_FLOAT, halves(volume.array));
    this.overlay(); // before the first drawing: samplers of different kinds must not share a unit
    this.organs(new Uint8Array(4));
    this.view.addVolume(frame);
  }

  window({ width, level }) {
    this.uniform("uniform2f", "hounsfield", level - width / 2, width);
  }

  overlay(labels, attribution) {
    const { gl } = this;
    this.put("labels", labels, { [gl.R8UI]: Uint8Array, [gl.R16UI]: Uint16Array }, gl.RED_INTEGER, gl.NEAREST);
    this.put("attribution", attribution, { [gl.R8_SNORM]: Int8Array }, gl.RED, gl.LINEAR);
  }

  // A volume as a 3D texture on its own unit; a single 0 where there is none.
  put(name, volume, formats, layout, filter) {
    const { gl } = this;
    const kind = volume?.array.constructor ?? Object.values(formats)[0];
    const format = Number(Object.keys(formats).find((key) => formats[key] === kind));
    const types = new Map([[Uint8Array, gl.UNSIGNED_BYTE], [Uint16Array, gl.UNSIGNED_SHORT], [Int8Array, gl.BYTE]]);
    this.fresh(name, gl.TEXTURE_3D, filter);
    const [i, j, k] = volume?.shape ?? [1, 1, 1];
    gl.texImage3D(gl.TEXTURE_3D, 0, format, i, j, k, 0, layout, types.get(kind), volume?.array ?? new kind(1));
    const there = volume && multiply(multiply(texture(volume.shape), volume.toVoxel), this.textureToWorld());
    this.uniform("uniformMatrix4fv", `${name}Place`, false, columns(there ?? new Array(16).fill(0)));
  }

  textureToWorld() {
    return multiply(this.volume.affine, voxels(this.volume.shape));
  }

  // One texel a label value: its colour, and in alpha whether it is shown.
  organs(colors) {
    const { gl } = this;
    this.fresh("organs", gl.TEXTURE_2D, gl.NEAREST);
    const width = colors.length / 4;
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, width, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, colors);
  }

  fresh(name, target, filter) {
    const { gl } = this;
    if (this.textures[name]) gl.deleteTexture(this.textures[name]);
    this.textures[name] = gl.createTexture();
    gl.activeTexture(gl.TEXTURE0 + UNITS[name]);
    gl.bindTexture(target, this.textures[name]);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, side, filter);
    for (const axis of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R])
      gl.texParameteri(target, axis, gl.CLAMP_TO_EDGE);
    this.uniform("uniform1i", name, UNITS[name]);
  }

  look({ opacity, signed, fill, outline, target }) {
    const dense = window.devicePixelRatio || 1;
    this.uniform("uniform4f", "strengths", opacity, fill, outline, dense);
    this.uniform("uniform1i", "isSigned", signed ? 1 : 0);
    this.uniform("uniform1i", "target", target);
  }

  palettes(palettes) {
    for (const [name, stops] of Object.entries(palettes)) this.uniform("uniform3fv", name, stops.flat());
  }

  uniform(setter, name, ...values) {
    const { program } = this.view.customSliceShader;
    this.gl.useProgram(program);
    this.gl[setter](this.gl.getUniformLocation(program, name), ...values);
  }

  // tiles: by plane name, [left, top, width, height] in shares of the canvas.
  layout(tiles) {
    const shown = PLANES.filter(({ name }) => tiles[name]);
    this.view.customLayout = shown.map(({ name, type }) => ({ sliceType: type, position: tiles[name] }));
  }

  draw(voxel) {
    if (!this.volume) return;
    voxel.forEach((at, axis) => (this.view.scene.crosshairPos[axis] = (at + 0.5) / this.volume.shape[axis]));
    this.view.drawScene();
  }

  close() {
    this.closed = true;
    this.view.cleanup();
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}

// HU as 16-bit floats, which a graphics card interpolates: exact to ±2048, to 2 HU beyond.
function halves(array) {
  const table = new Uint16Array(65536);
  const bits = new DataView(new ArrayBuffer(4));
  for (let value = -32768; value < 32768; value++) {
    bits.setFloat32(0, value);
    const whole = bits.getUint32(0);
    const exponent = value ? ((whole >>> 23) & 255) - 112 : 0;
    table[value & 65535] = ((whole >>> 16) & 0x8000) | (value ? (exponent << 10) | ((whole >>> 13) & 1023) : 0);
  }
  const found = new Uint16Array(array.length);
  for (let at = 0; at < array.length; at++) found[at] = table[array[at] & 65535];
  return found;
}
