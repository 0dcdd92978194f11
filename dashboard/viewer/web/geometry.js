// 4 × 4 matrices, row by row, from voxels to the world (RAS millimetres) and back, and the three planes.

// Shown as slices.py shows them: voxel indices grow towards the patient's right, anterior and superior side,
// the screen's horizontal axis runs against its index, its vertical axis runs with it upwards.
export const PLANES = [
  { name: "axial", type: 0, across: 2, horizontal: 0, vertical: 1, sides: "RLAP", from: "the feet" },
  { name: "coronal", type: 1, across: 1, horizontal: 0, vertical: 2, sides: "RLSI", from: "the front" },
  { name: "sagittal", type: 2, across: 0, horizontal: 1, vertical: 2, sides: "APSI", from: "the left" },
];

export function multiply(a, b) {
  const product = new Array(16);
  for (let row = 0; row < 4; row++)
    for (let column = 0; column < 4; column++)
      product[4 * row + column] = [0, 1, 2, 3].reduce((sum, n) => sum + a[4 * row + n] * b[4 * n + column], 0);
  return product;
}

export function transform(matrix, [x, y, z]) {
  return [0, 4, 8].map((row) => matrix[row] * x + matrix[row + 1] * y + matrix[row + 2] * z + matrix[row + 3]);
}

// The inverse of an affine matrix, by cofactors of its 3 × 3 part.
export function inverse(m) {
  const [a, b, c, , d, e, f, , g, h, i] = m;
  const cofactors = [e * i - f * h, c * h - b * i, b * f - c * e, f * g - d * i, a * i - c * g, c * d - a * f,
    d * h - e * g, b * g - a * h, a * e - b * d];
  const determinant = a * cofactors[0] + b * cofactors[3] + c * cofactors[6];
  const [p, q, r, s, t, u, v, w, x] = cofactors.map((value) => value / determinant);
  const back = (first, second, third) => -(first * m[3] + second * m[7] + third * m[11]);
  return [p, q, r, back(p, q, r), s, t, u, back(s, t, u), v, w, x, back(v, w, x), 0, 0, 0, 1];
}

// From voxel indices to texture coordinates, in which 0 and 1 are the outer faces of the grid, and back.
export function texture([i, j, k]) {
  return [1 / i, 0, 0, 0.5 / i, 0, 1 / j, 0, 0.5 / j, 0, 0, 1 / k, 0.5 / k, 0, 0, 0, 1];
}

export function voxels([i, j, k]) {
  return [i, 0, 0, -0.5, 0, j, 0, -0.5, 0, 0, k, -0.5, 0, 0, 0, 1];
}

// WebGL reads matrices column by column.
export function columns(m) {
  return Float32Array.from({ length: 16 }, (_, n) => m[4 * (n % 4) + (n >> 2)]);
}

export function spacing(affine) {
  return [0, 1, 2].map((axis) => Math.hypot(affine[axis], affine[4 + axis], affine[8 + axis]));
}
