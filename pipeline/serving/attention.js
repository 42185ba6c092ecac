// Where the model looked: the photo dimmed, and bright there.

const CELLS = 96; // of the smooth map, along its longer side
const DARKNESS = 0.72;

// The grid as a smooth map: each cell a Gaussian as wide as a cell, the sum scaled to 0 … 1.
export function smooth(grid) {
  const [rows, columns] = [grid.length, grid[0].length];
  const scale = CELLS / Math.max(rows, columns);
  const [height, width] = [Math.round(rows * scale), Math.round(columns * scale)];
  const across = kernel(width, columns), down = kernel(height, rows);
  const half = grid.map((row) => across.map((weights) => dot(weights, row)));
  const map = down.map((weights) => half[0].map((_, x) => dot(weights, half.map((row) => row[x]))));
  const values = map.flat();
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return map.map((row) => row.map((value) => (value - low) / (high - low || 1)));
}

function kernel(pixels, cells) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const at = ((pixel + 0.5) / pixels) * cells - 0.5;
    const weights = Array.from({ length: cells }, (_, cell) => Math.exp(-((cell - at) ** 2) / (2 * 0.55 ** 2)));
    const sum = weights.reduce((a, b) => a + b);
    return weights.map((weight) => weight / sum);
  });
}

function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

// Darken the canvas but for where the grid is high. `seen` is the part of the photo that the grid
// covers: left, top, width and height as fractions.
export function draw(canvas, grid, seen) {
  const box = canvas.getBoundingClientRect();
  const sharpness = Math.min(2, window.devicePixelRatio || 1);
  canvas.width = Math.max(1, Math.round(box.width * sharpness));
  canvas.height = Math.max(1, Math.round(box.height * sharpness));
  const map = smooth(grid);
  const small = document.createElement("canvas");
  [small.width, small.height] = [map[0].length, map.length];
  const pixels = new ImageData(small.width, small.height);
  map.flat().forEach((value, i) => { pixels.data[4 * i + 3] = 255 * DARKNESS * (1 - value); });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.fillStyle = `rgb(0 0 0 / ${DARKNESS})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
  const [left, top, width, height] = [
    seen[0] * canvas.width, seen[1] * canvas.height, seen[2] * canvas.width, seen[3] * canvas.height,
  ];
  context.clearRect(left, top, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, left, top, width, height);
}
