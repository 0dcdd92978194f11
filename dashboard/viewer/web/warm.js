// Loads the viewer's modules before there is anything to view. What fails here is told by viewer.js, which needs them.

export default function ({ data }) {
  for (const path of [data.niivue, `${data.code}app.js`]) import(new URL(path, document.baseURI).href).catch(() => {});
}
