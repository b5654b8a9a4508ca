// A point cloud that can be turned, in place of its picture: by dragging, by touch or with the keys.
//
// <figure class="cloud" data-points data-colours data-box data-azimuth data-elevation data-name> as gallery_pictures.cloud packs
// them: points as int16 x, y, z (z up, in shares of the radius / 32767), colours as uint8, the box as six numbers or nothing.
// The picture in the figure stays until the cloud comes into view, and where there is no canvas. View, haze and edges are those
// of cloud_pictures.py.
"use strict";

const DISTANCE = 4, MARGIN = 0.07, STEPS = 32767, TURN = 10, DEGREES_PER_PIXEL = 0.5;
const BACKGROUND = [16, 18, 24], EDGE = [255, 242, 219];

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

class CloudViewer {
  constructor(figure) {
    const data = figure.dataset;
    const steps = new DataView(bytesOf(data.points).buffer);
    this.count = steps.byteLength / 6;
    this.points = Float32Array.from({ length: 3 * this.count }, (_, at) => steps.getInt16(2 * at, true) / STEPS);
    this.colours = bytesOf(data.colours);
    this.box = data.box ? data.box.split(" ").map(Number) : null;
    this.start = { azimuth: Number(data.azimuth), elevation: Number(data.elevation), zoom: 1 };
    this.view = { ...this.start };
    this.order = Array.from({ length: this.count }, (_, at) => at);
    this.places = new Float32Array(3 * this.count); // x, y and depth of each point
    this.fit = this.fitted();
    this.size = this.diameter();
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", `Point cloud of ${data.name}${this.box ? " with a box" : ""}. Arrow keys turn it, plus and minus bring it nearer or farther, 0 puts it back.`);
    figure.querySelector("img").replaceWith(this.canvas);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.draw();
  }

  // Axes of a camera: what is right, up, and towards it
  axes(azimuth, elevation) {
    const turn = azimuth * Math.PI / 180, rise = elevation * Math.PI / 180;
    const [ct, st, cr, sr] = [Math.cos(turn), Math.sin(turn), Math.cos(rise), Math.sin(rise)];
    return { right: [-st, ct, 0], up: [-sr * ct, -sr * st, cr], towards: [cr * ct, cr * st, sr] };
  }

  project(axes, x, y, z) {
    const depth = DISTANCE - (x * axes.towards[0] + y * axes.towards[1] + z * axes.towards[2]);
    const right = x * axes.right[0] + y * axes.right[1];
    const up = x * axes.up[0] + y * axes.up[1] + z * axes.up[2];
    return [right / depth, -up / depth, depth];
  }

  // Pixels per unit on a canvas of one pixel, so that nothing leaves it when the cloud is turned level
  fitted() {
    let farthest = 1e-6;
    for (let azimuth = 0; azimuth < 360; azimuth += 30) {
      const axes = this.axes(azimuth, this.start.elevation);
      for (let at = 0; at < this.count; at += 2) {
        const [x, y] = this.project(axes, ...this.points.subarray(3 * at, 3 * at + 3));
        farthest = Math.max(farthest, Math.abs(x), Math.abs(y));
      }
    }
    return (0.5 - MARGIN) / farthest;
  }

  // Of points that just about touch, on a canvas of one pixel
  diameter() {
    const axes = this.axes(this.start.azimuth, this.start.elevation), cells = new Set();
    for (let at = 0; at < this.count; at++) {
      const [x, y] = this.project(axes, ...this.points.subarray(3 * at, 3 * at + 3));
      cells.add(`${Math.floor(40 * x * this.fit)} ${Math.floor(40 * y * this.fit)}`);
    }
    return Math.min(Math.max(1.9 * Math.sqrt(cells.size / 1600 / this.count), 0.0065), 0.026);
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const side = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    const context = this.canvas.getContext("2d");
    const axes = this.axes(this.view.azimuth, this.view.elevation), scale = this.fit * this.view.zoom * side;
    this.ground(context, side);
    for (let at = 0; at < this.count; at++) {
      const place = this.project(axes, this.points[3 * at], this.points[3 * at + 1], this.points[3 * at + 2]);
      this.places.set([side / 2 + scale * place[0], side / 2 + scale * place[1], place[2]], 3 * at);
    }
    this.order.sort((one, other) => this.places[3 * other + 2] - this.places[3 * one + 2]);
    if (this.box) this.edges(context, axes, scale, side, false);
    const radius = this.size * this.view.zoom * side / 2;
    for (const at of this.order) this.ball(context, at, radius);
    if (this.box) this.edges(context, axes, scale, side, true);
  }

  ground(context, side) {
    const light = context.createRadialGradient(side / 2, 0.6 * side, 0, side / 2, 0.6 * side, 0.6 * side);
    light.addColorStop(0, "rgb(46 51 70)");
    light.addColorStop(1, `rgb(${BACKGROUND.join(" ")})`);
    context.fillStyle = light;
    context.fillRect(0, 0, side, side);
  }

  ball(context, at, radius) {
    const [x, y, depth] = this.places.subarray(3 * at, 3 * at + 3);
    const haze = 0.5 * Math.min(Math.max((depth - (DISTANCE - 0.5)) / 1.5, 0), 1);
    const near = radius * DISTANCE / depth;
    for (const [light, size, shift] of [[0.72, 1, 0], [1.05, 0.66, 0.2]]) {
      const [red, green, blue] = [0, 1, 2].map((c) => (1 - haze) * light * this.colours[3 * at + c] + haze * BACKGROUND[c]);
      context.fillStyle = `rgb(${red | 0} ${green | 0} ${blue | 0})`;
      context.beginPath();
      context.arc(x - shift * near, y - shift * near, size * near, 0, 7);
      context.fill();
    }
  }

  // The edges that face the camera lie over the points; an edge faces it when one of its two sides does
  edges(context, axes, scale, side, facing) {
    const [centre, extents] = [this.box.slice(0, 3), this.box.slice(3)];
    const camera = axes.towards.map((v) => DISTANCE * v);
    context.strokeStyle = `rgb(${EDGE.join(" ")} / ${facing ? 1 : 0.4})`;
    context.lineWidth = Math.max((facing ? 0.0056 : 0.0036) * side, 1);
    context.lineCap = "round";
    for (let axis = 0; axis < 3; axis++) {
      const others = [(axis + 1) % 3, (axis + 2) % 3];
      for (const signs of [[-1, -1], [-1, 1], [1, -1], [1, 1]]) {
        const middle = centre.slice();
        others.forEach((other, n) => { middle[other] += signs[n] * extents[other] / 2; });
        if (others.some((other, n) => (camera[other] - middle[other]) * signs[n] > 0) !== facing) continue;
        context.beginPath();
        for (const end of [-0.5, 0.5]) {
          const corner = middle.slice();
          corner[axis] += end * extents[axis];
          const [x, y] = this.project(axes, ...corner);
          context.lineTo(side / 2 + scale * x, side / 2 + scale * y);
        }
        context.stroke();
      }
    }
  }

  turn(azimuth, elevation) {
    this.view.azimuth = (this.view.azimuth + azimuth) % 360;
    this.view.elevation = Math.min(Math.max(this.view.elevation + elevation, -89), 89);
    this.ask();
  }

  zoom(factor) {
    this.view.zoom = Math.min(Math.max(this.view.zoom * factor, 0.5), 8);
    this.ask();
  }

  reset() {
    this.view = { ...this.start };
    this.ask();
  }

  ask() { // one drawing per frame
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => { this.asked = false; this.draw(); });
  }

  listen() {
    const canvas = this.canvas;
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      last = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      this.turn(-DEGREES_PER_PIXEL * (event.clientX - last[0]), DEGREES_PER_PIXEL * (event.clientY - last[1]));
      last = [event.clientX, event.clientY];
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });
    canvas.addEventListener("dblclick", () => this.reset());
    const keys = {
      ArrowLeft: () => this.turn(TURN, 0), ArrowRight: () => this.turn(-TURN, 0),
      ArrowUp: () => this.turn(0, -TURN), ArrowDown: () => this.turn(0, TURN),
      "+": () => this.zoom(1.2), "=": () => this.zoom(1.2), "-": () => this.zoom(1 / 1.2), 0: () => this.reset(),
    };
    canvas.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      keys[event.key]();
      event.preventDefault();
    });
  }
}

// Clouds become turnable when they come near the window: a page may hold many.
function watchClouds(figures) {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      new CloudViewer(entry.target);
    }
  }, { rootMargin: "200px" });
  for (const figure of figures) seen.observe(figure);
}
