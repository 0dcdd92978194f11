// Streamlit's side of the viewer: opens it once for each place on the page, hands on what changed, and closes it.
// Everything else lies in modules that the browser fetches from this very server.

const open = new WeakMap();
let first = true; // later viewers find modules and, often, volumes in the page

export default function ({ data, parentElement, setTriggerValue }) {
  let mount = open.get(parentElement);
  if (!mount || !parentElement.contains(mount.root)) {
    mount?.close();
    mount = new Mount(parentElement.querySelector(".viewer"));
    open.set(parentElement, mount);
  }
  const turn = mount.update(data, setTriggerValue);
  return () => {
    // The cleanup of an older turn may come late, when a newer one already uses the viewer.
    if (turn !== mount.turn) return;
    mount.close();
    open.delete(parentElement);
  };
}

class Mount {
  constructor(root) {
    this.root = root;
    this.turn = 0;
  }

  update(data, send) {
    this.latest = [data, send];
    this.app ??= this.start(data, send);
    this.app.then((app) => app?.update(...this.latest));
    return ++this.turn;
  }

  // NiiVue, the app and the volumes load side by side, whichever is there first.
  async start(data, send) {
    try {
      if (!hasWebGL()) throw new Error("WebGL");
      const library = import(here(data.niivue));
      library.catch(() => send("lacks", "NiiVue"));
      const early = first ? ahead(data) : new Map();
      first = false;
      const { App } = await import(here(`${data.code}app.js`));
      return this.closed ? null : new App(this.root, library, early);
    } catch (error) {
      send("lacks", error.message === "WebGL" ? "WebGL" : "NiiVue"); // Python shows its slices instead
      return null;
    }
  }

  close() {
    this.closed = true;
    this.app?.then((app) => app?.close());
  }
}

// The volumes of a page that was just opened, by address.
function ahead({ scan, maps }) {
  const parcels = [scan, ...maps.flatMap(({ labels, attribution }) => [labels, attribution])].filter(Boolean);
  const early = new Map(parcels.map(({ url }) => [url, fetch(url, { credentials: "same-origin", cache: "no-store" })]));
  for (const request of early.values()) request.catch(() => {}); // told where it is read
  return early;
}

function here(path) {
  return new URL(path, document.baseURI).href;
}

function hasWebGL() {
  const context = document.createElement("canvas").getContext("webgl2");
  context?.getExtension("WEBGL_lose_context")?.loseContext(); // a page has about 16, and this one was a question
  return Boolean(context);
}
