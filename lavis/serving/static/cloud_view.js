// A turnable view of a point cloud with one box, on a 2-D canvas: no WebGL, no library.
//
// view.show({points, colours, up})  points: Float32Array of x, y, z; colours: Uint8Array of r, g, b or null; up: "z" or "y"
// view.box = [cx, cy, cz, dx, dy, dz] or null; view.label = text at the box; view.draw()
// Drag or arrow keys turn, + and - (or the wheel, when the view has the focus) zoom, 0 goes back.
const LOW = [69, 84, 194], HIGH = [133, 237, 214]; // the colour of the lowest and of the highest point
const INSIDE = [255, 176, 84], EDGE = "#ffe9c7", PAPER = "#10131b", GLOW = "#2a2f42", FLOOR = "rgba(255, 255, 255, .07)";
const FAR = 3.2; // of the camera, in radii of the cloud
const FILLED = 0.47; // of a side of the canvas, from its middle
const EDGES = [[0, 1], [1, 3], [3, 2], [2, 0], [4, 5], [5, 7], [7, 6], [6, 4], [0, 4], [1, 5], [2, 6], [3, 7]];

class CloudView {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.points = this.colours = this.box = null;
    this.label = "";
    this.home();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  home() {
    Object.assign(this, { azimuth: -0.9, elevation: 0.5, zoom: 1 });
  }

  show({ points, colours, up }) {
    Object.assign(this, { points, colours, up });
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    for (let i = 0; i < points.length; i++) {
      low[i % 3] = Math.min(low[i % 3], points[i]);
      high[i % 3] = Math.max(high[i % 3], points[i]);
    }
    this.low = low;
    this.high = high;
    this.centre = low.map((value, axis) => (value + high[axis]) / 2);
    this.radius = Math.hypot(...low.map((value, axis) => high[axis] - value)) / 2 || 1;
    this.home();
    this.measure();
    this.draw();
  }

  // how far the extent reaches from the middle, seen from all around: across and upwards, at a scale of 1
  measure() {
    this.reach = [1e-6, 1e-6];
    for (this.azimuth = 0; this.azimuth < 6.3; this.azimuth += 0.3) {
      for (let index = 0; index < 8; index++) {
        const at = this.turned(...[0, 1, 2].map((axis) => ((index >> axis) & 1 ? this.high : this.low)[axis]));
        for (const side of [0, 1]) this.reach[side] = Math.max(this.reach[side], Math.abs(at[side]) / (FAR - at[2]));
      }
    }
    this.home();
  }

  // x, y, z of the cloud to right, up and towards the camera, in radii; `up` says which axis is up
  turned(x, y, z) {
    let [a, b, c] = [x - this.centre[0], y - this.centre[1], z - this.centre[2]];
    if (this.up === "y") [b, c] = [-c, b];
    const [s, t] = [Math.sin(this.azimuth), Math.cos(this.azimuth)];
    const [u, v] = [Math.sin(this.elevation), Math.cos(this.elevation)];
    const ahead = a * t + b * s;
    return [(b * t - a * s) / this.radius, (c * v - ahead * u) / this.radius, (c * u + ahead * v) / this.radius];
  }

  onCanvas([right, up, towards]) {
    const scale = (this.scale * this.zoom) / Math.max(FAR - towards, 0.2);
    return [this.width / 2 + right * scale, this.height / 2 - up * scale, scale];
  }

  fit() {
    const ratio = window.devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    if (this.reach) this.scale = FILLED * Math.min(this.width / this.reach[0], this.height / this.reach[1]);
    const [width, height] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    this.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  draw() {
    this.fit();
    const pen = this.pen;
    const light = pen.createRadialGradient(this.width / 2, 0.6 * this.height, 0, this.width / 2, 0.6 * this.height, 0.6 * this.width + 1);
    light.addColorStop(0, GLOW);
    light.addColorStop(1, PAPER);
    pen.fillStyle = light;
    pen.fillRect(0, 0, this.width, this.height);
    if (!this.points || !this.width) return;
    this.drawFloor();
    this.drawPoints();
    if (this.box) this.drawBox();
  }

  drawFloor() {
    const vertical = this.up === "y" ? 1 : 2, [first, second] = this.up === "y" ? [0, 2] : [0, 1];
    const corner = (one, two) => {
      const at = [0, 0, 0];
      at[vertical] = this.low[vertical];
      at[first] = this.low[first] + one * (this.high[first] - this.low[first]);
      at[second] = this.low[second] + two * (this.high[second] - this.low[second]);
      return this.onCanvas(this.turned(...at));
    };
    for (let step = 0; step <= 6; step++) {
      this.line(corner(step / 6, 0), corner(step / 6, 1), FLOOR, 1);
      this.line(corner(0, step / 6), corner(1, step / 6), FLOOR, 1);
    }
  }

  drawPoints() {
    const { points, colours, pen } = this, count = points.length / 3;
    const vertical = this.up === "y" ? 1 : 2, rise = this.high[vertical] - this.low[vertical] || 1;
    const placed = new Float32Array(count * 3), depth = new Float32Array(count), order = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      const at = this.turned(points[3 * i], points[3 * i + 1], points[3 * i + 2]);
      placed.set(this.onCanvas(at), 3 * i);
      depth[i] = at[2];
      order[i] = i;
    }
    order.sort((one, two) => depth[one] - depth[two]);
    const dot = Math.min(7, Math.max(1.8, 170 / Math.sqrt(count))) / (this.scale / FAR);
    for (const i of order) {
      const share = (points[3 * i + vertical] - this.low[vertical]) / rise, light = 0.72 + 0.28 * depth[i];
      const colour = this.holds(i) ? INSIDE : colours ? colours.subarray(3 * i, 3 * i + 3) : LOW.map((c, k) => c + share * (HIGH[k] - c));
      pen.fillStyle = `rgb(${colour[0] * light}, ${colour[1] * light}, ${colour[2] * light})`;
      const wide = dot * placed[3 * i + 2];
      pen.fillRect(placed[3 * i] - wide / 2, placed[3 * i + 1] - wide / 2, wide, wide);
    }
  }

  // whether point i lies in the box
  holds(i) {
    if (!this.box) return false;
    for (let axis = 0; axis < 3; axis++) {
      if (Math.abs(this.points[3 * i + axis] - this.box[axis]) > this.box[3 + axis] / 2) return false;
    }
    return true;
  }

  drawBox() {
    const corners = [...Array(8).keys()].map((index) => {
      const signs = [index & 1 ? 1 : -1, index & 2 ? 1 : -1, index & 4 ? 1 : -1];
      return this.onCanvas(this.turned(...signs.map((sign, axis) => this.box[axis] + (sign * this.box[3 + axis]) / 2)));
    });
    for (const [one, two] of EDGES) this.line(corners[one], corners[two], EDGE, 1.6);
    if (!this.label) return;
    const pen = this.pen, top = corners.reduce((best, corner) => (corner[1] < best[1] ? corner : best));
    pen.font = "600 14px system-ui, sans-serif";
    const wide = pen.measureText(this.label).width + 16;
    const left = Math.min(Math.max(top[0] - wide / 2, 4), this.width - wide - 4), high = Math.max(top[1] - 34, 4);
    pen.fillStyle = EDGE;
    pen.beginPath();
    pen.roundRect(left, high, wide, 26, 5);
    pen.fill();
    pen.fillStyle = PAPER;
    pen.fillText(this.label, left + 8, high + 18);
  }

  line(from, to, colour, width) {
    this.pen.strokeStyle = colour;
    this.pen.lineWidth = width;
    this.pen.beginPath();
    this.pen.moveTo(from[0], from[1]);
    this.pen.lineTo(to[0], to[1]);
    this.pen.stroke();
  }

  turn(sideways, upwards) {
    this.azimuth -= sideways;
    this.elevation = Math.min(Math.max(this.elevation + upwards, -1.5), 1.5);
    this.ask();
  }

  magnify(factor) {
    this.zoom = Math.min(Math.max(this.zoom * factor, 0.4), 8);
    this.ask();
  }

  // one drawing per frame
  ask() {
    this.asked ||= requestAnimationFrame(() => {
      this.asked = 0;
      this.draw();
    });
  }

  listen() {
    const canvas = this.canvas;
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = [event.clientX, event.clientY];
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      this.turn((event.clientX - last[0]) * 0.01, (event.clientY - last[1]) * 0.01);
      last = [event.clientX, event.clientY];
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => (last = null));
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (document.activeElement !== canvas) return; // the page scrolls on over a view that nobody has clicked
        event.preventDefault();
        this.magnify(event.deltaY < 0 ? 1.1 : 1 / 1.1);
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };
      if (steps[event.key]) this.turn(...steps[event.key]);
      else if (event.key === "+") this.magnify(1.1);
      else if (event.key === "-") this.magnify(1 / 1.1);
      else if (event.key === "0") this.home(), this.ask();
      else return;
      event.preventDefault();
    });
  }
}
