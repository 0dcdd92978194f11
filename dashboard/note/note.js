// A note that reaches Python while it is written: nothing typed waits for a verdict to be kept.

const notes = new WeakMap();
const PAUSE = 400; // ms without a key until what was typed is sent

export default function ({ data, parentElement, setStateValue }) {
  let note = notes.get(parentElement);
  if (!note || !parentElement.contains(note.area)) {
    note?.close();
    note = new Note(parentElement);
    notes.set(parentElement, note);
  }
  note.send = (value) => setStateValue("note", value);
  note.update(data);
  return () => {
    note.close();
    notes.delete(parentElement);
  };
}

class Note {
  constructor(root) {
    this.root = root;
    this.area = root.querySelector("textarea");
    this.area.addEventListener("input", () => {
      this.dirty = true;
      this.say("");
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.flush(), PAUSE);
    });
    this.area.addEventListener("blur", () => this.flush());
    this.area.addEventListener("keydown", (event) => this.key(event));
    this.reach = (event) => {
      const typing = event.composedPath().some((place) => /^(input|textarea|select)$/i.test(place.tagName ?? ""));
      if (typing || event.key.toLowerCase() !== "n" || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.area.focus();
    };
    document.addEventListener("keydown", this.reach);
  }

  // Letters typed here are text and never reach the page's shortcuts. Releases do: a key of which the page saw
  // no release counts as held down, and then no shortcut fires.
  key(event) {
    event.stopPropagation();
    const leaves = event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey));
    if (leaves) this.area.blur();
  }

  close() {
    this.flush();
    document.removeEventListener("keydown", this.reach);
  }

  flush() {
    clearTimeout(this.timer);
    if (!this.dirty) return;
    this.dirty = false;
    this.send({ of: this.of, text: this.area.value });
  }

  update(data) {
    if (data.of !== this.of) {
      this.flush();
      this.of = data.of;
      this.area.value = data.text;
      this.area.blur();
    }
    this.root.querySelector("label").textContent = data.label;
    this.area.placeholder = data.placeholder;
    this.area.maxLength = data.longest;
    const keys = this.root.querySelector(".keys");
    keys.replaceChildren(...["N", " writes, ", "Esc", " leaves"].map((text, n) => {
      const part = document.createElement(n % 2 ? "span" : "kbd");
      part.textContent = text;
      return part;
    }));
    if (!this.dirty) this.say(data.kept && data.text === this.area.value ? "kept as a draft" : "");
  }

  say(text) {
    this.root.querySelector(".kept").textContent = text;
  }
}
