// The 3D rendering: organs as translucent bodies on the model's grid with the strongest attribution inside them,
// or, where nothing is segmented, the scan's bones. It is coarse on purpose: a ray through a full scan costs
// seconds without a graphics card, and the slices are where one reads.

import { regridded } from "./volumes.js";

const OPTIONS = {
  dragAndDropEnabled: false,
  interactive: false,
  show3Dcrosshair: true,
  isOrientCube: true,
  isResizeCanvas: true,
  loadingText: "",
  logLevel: "error",
  backColor: [0, 0, 0, 1],
  crosshairColor: [0.51, 1, 0.75, 0.9],
  crosshairWidth: 1,
  crosshairWidthUnit: "mm",
  sliceType: 4,
  gradientAmount: 0.6,
};

const COARSEST = 96; // voxels along the longest axis
const BONE = { cal_min: 180, cal_max: 900, colormap: "ct_bones" };
const STRONG = 0.3; // of the colour scale's end: what is weaker would hide the rest as a fog

export class Body {
  static async open(library, canvas) {
    const body = new Body();
    body.library = library;
    body.view = new library.Niivue(OPTIONS);
    await body.view.attachToCanvas(canvas, false);
    body.turn(0, 0, [160, 12]);
    return body;
  }

  async show(scan, labels, attribution) {
    this.labels = null;
    for (const old of [...this.view.volumes].reverse()) this.view.removeVolume(old);
    const { NVImage } = this.library;
    if (labels) {
      this.labels = await NVImage.loadFromUrl({ url: coarse(labels), name: "organs.nii", opacity: 0.5 });
      this.labels.hdr.intent_code = 1002; // NIfTI's word for labels: NiiVue then never mixes neighbouring values
      this.view.addVolume(this.labels);
    } else {
      this.view.addVolume(await NVImage.loadFromUrl({ url: coarse(scan), name: "scan.nii", ...BONE }));
    }
    if (!attribution) return;
    const range = { cal_min: STRONG * 127, cal_max: 127, colormap: "agg2exp_positive" };
    const map = await NVImage.loadFromUrl({ url: coarse(attribution), name: "map.nii", ...range });
    map.colormapNegative = "agg2exp_negative";
    this.view.addVolume(map);
  }

  palette(positive, negative) {
    for (const [name, stops] of Object.entries({ positive, negative })) {
      const I = stops.map((_, n) => Math.round((255 * n) / (stops.length - 1)));
      const [R, G, B] = [0, 1, 2].map((part) => stops.map((stop) => Math.round(255 * stop[part])));
      this.view.addColormap(`agg2exp_${name}`, { R, G, B, A: I.map((at) => (at ? 255 : 0)), I });
    }
  }

  // colors: as for the slices, four bytes a label value.
  organs(colors, titles) {
    if (!this.labels) return;
    const part = (offset) => Array.from({ length: colors.length / 4 }, (_, label) => colors[4 * label + offset]);
    this.labels.setColormapLabel({ R: part(0), G: part(1), B: part(2), A: part(3), labels: titles });
  }

  attribution(opacity) {
    const map = this.view.volumes[1];
    if (map) map.opacity = opacity;
  }

  refresh() {
    this.view.updateGLVolume();
  }

  mark(world) {
    if (!this.view.volumes.length) return;
    this.view.scene.crosshairPos = this.view.mm2frac(world);
    this.view.drawScene();
  }

  turn(right, up, from = [this.view.scene.renderAzimuth, this.view.scene.renderElevation]) {
    const elevation = Math.min(Math.max(from[1] + up, -90), 90);
    this.view.setRenderAzimuthElevation((from[0] + right + 360) % 360, elevation);
  }

  zoom(factor) {
    this.view.setScale(Math.min(Math.max(this.view.scene.volScaleMultiplier * factor, 0.5), 4));
  }

  close() {
    this.view.cleanup();
    this.view.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}

// The bytes of a volume on a grid of COARSEST voxels at most along each axis.
function coarse(volume) {
  if (Math.max(...volume.shape) <= COARSEST) return volume.buffer;
  const step = Math.max(...volume.shape) / COARSEST;
  return regridded(volume, volume.shape.map((size) => Math.max(2, Math.round(size / step))));
}
