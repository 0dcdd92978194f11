// What lies under the crosshair, in words and numbers.

export class Readout {
  constructor(root, app) {
    this.list = root.querySelector(".readout");
    this.app = app;
  }

  update() {
    const { app } = this;
    if (!app.organs.organs) return;
    const world = app.world();
    const value = `${sign(app.scan.at(app.voxel), false)} ${app.unit}`.trim();
    const grey = [app.unit === "HU" ? "CT value" : "Grey value", [value]];
    const rows = [["Position", [millimetres(world)]], grey];
    const [{ labels }] = app.maps;
    if (labels) rows.push(["Organ", this.organ(labels.nearest(world))]);
    for (const { title, attribution } of app.maps) {
      if (!attribution || app.controls.mode === "off") continue;
      rows.push([title || "Attribution", [percent(attribution.nearest(world))]]);
    }
    this.list.replaceChildren(...rows.map(([name, content]) => {
      const row = document.createElement("div");
      row.classList.toggle("named", app.maps.some(({ title }) => title === name));
      const detail = document.createElement("dd");
      detail.append(...content);
      row.append(Object.assign(document.createElement("dt"), { textContent: name }), detail);
      return row;
    }));
  }

  organ(label) {
    const organ = this.app.organs.named(label);
    if (!organ) return ["–"];
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = organ.color;
    return [swatch, organ.title];
  }
}

function millimetres(world) {
  const letters = ["RL", "AP", "SI"];
  return `${world.map((mm, axis) => `${letters[axis][mm < 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)}`).join("  ")} mm`;
}

// Of a byte from −127 to 127; those at the ends stand for all that is stronger.
function percent(byte) {
  const share = Math.round((byte / 127) * 100);
  return `${Math.abs(byte) < 127 ? "" : byte < 0 ? "≤ " : "≥ "}${sign(share, true)} %`;
}

function sign(number, plus) {
  return (number < 0 ? "−" : plus && number > 0 ? "+" : "") + Math.abs(number);
}
