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
    const rows = [["Position", [millimetres(world)]], ["CT value", [`${sign(app.scan.at(app.voxel), false)} HU`]]];
    const [{ labels }] = app.maps;
    if (labels) rows.push(["Organ", this.organ(labels.nearest(world))]);
    for (const { title, attribution } of app.maps) {
      if (!attribution || app.controls.mode === "off") continue;
      const share = Math.round((attribution.linear(world) / 127) * 100);
      rows.push([title || "Attribution", [`${sign(share, true)} %`]]);
    }
    this.list.replaceChildren(...rows.map(([name, content]) => {
      const row = document.createElement("div");
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

function sign(number, plus) {
  return (number < 0 ? "−" : plus && number > 0 ? "+" : "") + Math.abs(number);
}
