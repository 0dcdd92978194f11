"""A scan with its organs and attribution: NiiVue in the browser or, where it cannot run, slices cut by the server."""
