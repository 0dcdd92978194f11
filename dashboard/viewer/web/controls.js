// The bar above the pictures: HU window, attribution, organs' outlines and fills. Nothing here asks the server.

const settings = { window: null, kind: null, chosen: false, preset: null, mode: null, opacity: 70, outline: true, fill: 0 };
const MODES = { signed: "Signed", absolute: "Absolute", off: "Hidden" };

export class Controls {
  constructor(root, app) {
    this.root = root;
    this.app = app;
    this.find = (selector) => root.querySelector(selector);
    this.slider(".opacity input", "opacity", Number);
    this.slider(".fill input", "fill", Number);
    const outline = this.find(".outline input");
    outline.checked = settings.outline;
    outline.addEventListener("change", () => this.set({ outline: outline.checked }));
    for (const name of ["width", "level"]) {
      this.find(`.${name}`).addEventListener("change", ({ target }) => {
        if (target.checkValidity() && target.value) this.windowTo({ ...settings.window, [name]: Number(target.value) });
      });
    }
    this.find(".peak").addEventListener("click", () => app.go(app.data.maps[0].peak));
    this.find(".full").addEventListener("click", () => this.fullScreen());
    root.addEventListener("fullscreenchange", () => {
      const full = root.matches(":fullscreen");
      this.find(".full").setAttribute("aria-pressed", full);
      this.find(".full").title = full ? "Leave full screen" : "Full screen";
    });
  }

  slider(selector, name, read) {
    const input = this.find(selector);
    input.value = settings[name];
    input.addEventListener("input", () => this.set({ [name]: read(input.value) }));
  }

  set(change) {
    Object.assign(settings, change);
    this.app.changed();
  }

  get window() {
    return settings.window;
  }

  get look() {
    const opacity = this.mode === "off" ? 0 : settings.opacity / 100;
    return { opacity, signed: this.mode === "signed", fill: settings.fill / 100, outline: settings.outline ? 1 : 0 };
  }

  get mode() {
    return settings.mode;
  }

  update(data) {
    settings.mode ??= data.mode;
    this.windows = data.windows;
    // A window that was chosen for HU is none for other values, nor that of one sequence for another.
    const kind = data.unit === "HU" ? data.unit : data.scan.source;
    if (settings.kind !== kind) Object.assign(settings, { kind, chosen: false });
    for (const name of ["width", "level"]) {
      this.find(`.${name}`).parentElement.title = `Window ${name}${data.unit && ` in ${data.unit}`}`;
    }
    // Each organ in its own window, until a reader chooses one.
    if (!settings.chosen) this.choose(data.windows.find(({ name }) => name === data.window));
    const maps = data.maps.some(({ attribution }) => attribution);
    const labels = data.maps.some(({ labels }) => labels);
    for (const [selector, shown] of [[".modes", maps], [".opacity", maps], [".outline", labels], [".fill", labels],
      [".peak", Boolean(data.maps[0].peak)]]) this.find(selector).hidden = !shown;
    this.choice(".windows", data.windows.map(({ name, title }) => [name, title]), settings.preset, (name) => {
      this.windowTo(data.windows.find((window) => window.name === name));
    });
    this.choice(".modes", Object.entries(MODES), settings.mode, (name) => {
      this.set({ mode: name });
      this.update(data);
    });
    this.numbers();
    this.legends(data);
  }

  choose(window) {
    const { width, level } = window;
    const preset = this.windows.find((known) => known.width === width && known.level === level);
    Object.assign(settings, { window: { width, level }, preset: preset?.name ?? null });
  }

  windowTo(window) {
    settings.chosen = true;
    this.choose(window);
    this.numbers();
    this.mark(".windows", settings.preset);
    this.app.changed();
  }

  numbers() {
    this.find(".width").value = Math.round(settings.window.width);
    this.find(".level").value = Math.round(settings.window.level);
  }

  // A row of buttons of which one is chosen; the arrow keys go through them, as through any radio group.
  choice(selector, options, chosen, choose) {
    const group = this.find(selector);
    group.replaceChildren(...options.map(([name, title]) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: title });
      button.dataset.name = name;
      button.setAttribute("role", "radio");
      button.addEventListener("click", () => choose(name));
      return button;
    }));
    group.onkeydown = (event) => this.along(event, group);
    this.mark(selector, chosen);
  }

  along(event, group) {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const names = [...group.children].map((button) => button.dataset.name);
    const at = (names.indexOf(event.target.dataset.name) + by + names.length) % names.length;
    group.children[at].click();
    group.children[at].focus();
  }

  mark(selector, chosen) {
    const buttons = [...this.find(selector).children];
    const known = buttons.some((button) => button.dataset.name === chosen);
    buttons.forEach((button, n) => {
      const on = button.dataset.name === chosen;
      button.setAttribute("aria-checked", on);
      button.tabIndex = on || (!known && n === 0) ? 0 : -1;
    });
  }

  // The colour bars of what is coloured now; several maps of one bar differ only in where their scales end.
  legends(data) {
    const box = this.find(".legend");
    box.replaceChildren();
    if (this.mode === "off") return;
    const legends = data.maps.map((map) => map.legends?.[this.mode]).filter(Boolean);
    if (!legends.length) return;
    const add = (name, text) => {
      const element = document.createElement("div");
      element.className = name;
      element.textContent = text ?? "";
      box.append(element);
      return element;
    };
    add("name", legends[0].title);
    add("scale").style.background = legends[0].ramp;
    const ends = add("ends");
    const word = (textContent) => Object.assign(document.createElement("span"), { textContent });
    ends.append(...legends[0].ends.map(word));
    legends.forEach((legend, n) => {
      add("note", [data.maps[n].title, legend.note].filter(Boolean).join(": ")).title = legend.exact;
    });
  }

  async fullScreen() {
    if (document.fullscreenElement) await document.exitFullscreen();
    else await this.root.requestFullscreen();
  }
}
