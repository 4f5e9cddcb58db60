"use strict";
// Pixels: from shipped values to colours. Masks hold 0 = background, class + 1, 255 = ignore.
// Everything here is told what it needs; the state of the page lives in report.js.
const paint = (() => {
  const IGNORE = 255;
  const UNNAMED = 254; // a map that belongs to no class, cut at the threshold: object or not
  const ERRORS = {
    hit: [216, 222, 230, 110], missed: [86, 180, 233, 255], extra: [230, 159, 0, 255],
    wrong: [214, 79, 165, 255], ignored: [125, 133, 144, 200],
  };

  async function picture(source) {
    const image = new Image();
    image.src = source;
    await image.decode();
    return image;
  }

  /** Bytes that were packed as deflated differences. */
  async function values(text) {
    const deflated = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    for (let i = 1; i < bytes.length; i++) bytes[i] += bytes[i - 1];
    return bytes;
  }

  /** Bilinear, half-pixel centres, edges held. */
  function enlarge(plane, [w, h], [width, height]) {
    const out = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const v = Math.min(Math.max((y + 0.5) * h / height - 0.5, 0), h - 1);
      const top = Math.floor(v), below = Math.min(top + 1, h - 1), dv = v - top;
      for (let x = 0; x < width; x++) {
        const u = Math.min(Math.max((x + 0.5) * w / width - 0.5, 0), w - 1);
        const left = Math.floor(u), right = Math.min(left + 1, w - 1), du = u - left;
        const above = plane[top * w + left] * (1 - du) + plane[top * w + right] * du;
        const under = plane[below * w + left] * (1 - du) + plane[below * w + right] * du;
        out[y * width + x] = Math.round(above * (1 - dv) + under * dv);
      }
    }
    return out;
  }

  /** The planes of one shipped map, at the photo's size; one of zeros for a photo without labels. */
  async function planes(map, size) {
    if (!map.count) return [new Uint8Array(size[0] * size[1])];
    const all = await values(map.values), step = map.size[0] * map.size[1];
    return Array.from({ length: map.count }, (_, k) =>
      enlarge(all.subarray(k * step, (k + 1) * step), map.size, size));
  }

  /** Photo, score planes at the photo's size, masks and truth of one picture; rules stay packed. */
  async function decode(record, size) {
    const maps = {}, masks = {}, trust = {}, doubts = {};
    const work = [[record.maps, maps], [record.trust, trust], [record.doubts, doubts]].flatMap(([from, to]) =>
      Object.entries(from).map(async ([name, map]) => { to[name] = await planes(map, size); }));
    for (const [name, text] of Object.entries(record.masks)) {
      work.push(values(text).then((mask) => { masks[name] = mask; }));
    }
    const [photo, truth] = await Promise.all([
      picture(record.photo), record.truth ? values(record.truth) : null, ...work,
    ]);
    return { photo, truth, maps, masks, trust, doubts, size, rules: {}, packed: record.rules };
  }

  /** The planes of a rule, unpacked when first asked for; some are those of a map. */
  async function rule(view, name) {
    view.rules[name] ??= view.packed[name] ? await planes(view.packed[name], view.size) : view.maps[name];
    return view.rules[name];
  }

  /** Per pixel the strongest of the planes. */
  function strongest(planes) {
    const best = planes[0].slice();
    for (const plane of planes.slice(1)) {
      for (let i = 0; i < best.length; i++) if (plane[i] > best[i]) best[i] = plane[i];
    }
    return best;
  }

  /** The mask of all pixels whose strongest score is above the threshold (0..1). */
  function cut(planes, labels, threshold) {
    const at = 255 * threshold, mask = new Uint8Array(planes[0].length);
    for (let i = 0; i < mask.length; i++) {
      let best = -1, which = 0;
      for (let k = 0; k < planes.length; k++) {
        if (planes[k][i] > best) { best = planes[k][i]; which = k; }
      }
      if (best > at) mask[i] = planes.length === labels.length ? labels[which] : UNNAMED;
    }
    return mask;
  }

  /** Mean IoU over the scored classes in mask or truth, null where nothing is counted. */
  function meanIou(mask, truth, scored) {
    const hits = new Uint32Array(256), either = new Uint32Array(256);
    for (let i = 0; i < mask.length; i++) {
      if (truth[i] === IGNORE) continue;
      either[truth[i]]++;
      if (mask[i] === truth[i]) hits[mask[i]]++; else either[mask[i]]++;
    }
    const known = scored.filter((c) => either[c]).map((c) => hits[c] / either[c]);
    return known.length ? known.reduce((a, b) => a + b) / known.length : null;
  }

  /** One pixel's verdict; a pixel the mask leaves open counts as background. */
  function errorKind(value, truth) {
    const predicted = value === IGNORE ? 0 : value;
    if (truth === IGNORE) return "ignored";
    if (predicted === truth) return truth ? "hit" : null;
    if (predicted === 0) return "missed";
    if (truth === 0) return "extra";
    return predicted === UNNAMED ? "hit" : "wrong";
  }

  function layer(count, colourAt) {
    const pixels = new Uint8ClampedArray(4 * count);
    for (let i = 0; i < count; i++) {
      const colour = colourAt(i);
      if (colour) {
        pixels[4 * i] = colour[0]; pixels[4 * i + 1] = colour[1]; pixels[4 * i + 2] = colour[2];
        pixels[4 * i + 3] = colour.length > 3 ? colour[3] : 255;
      }
    }
    return pixels;
  }

  /** Each pixel the mean of the colours, weighted by the shares that are its planes. */
  function blend(planes, colours) {
    return layer(planes[0].length, (i) => {
      const mixed = [0, 0, 0];
      let sum = 0;
      for (let k = 0; k < planes.length; k++) {
        sum += planes[k][i];
        for (let c = 0; c < 3; c++) mixed[c] += planes[k][i] * colours[k][c];
      }
      return sum ? mixed.map((value) => value / sum) : null;
    });
  }

  const heat = (plane, ramp) => layer(plane.length, (i) => ramp[plane[i]]);

  /** Class colours; ignored pixels as a fine grey diagonal, so that they read as "unknown". */
  function regions(mask, colours, width) {
    const hatch = [200, 205, 212, 230];
    return layer(mask.length, (i) => {
      const value = mask[i];
      if (value === 0) return null;
      if (value === IGNORE) return ((i % width) + Math.floor(i / width)) % 5 < 2 ? hatch : null;
      return value === UNNAMED ? [255, 255, 255] : colours[value];
    });
  }

  const errors = (mask, truth) =>
    layer(mask.length, (i) => ERRORS[errorKind(mask[i], truth[i])]);

  /** The photo with a layer over it; `muted` darkens and greys the photo below. */
  function compose(canvas, view, pixels, opacity, muted) {
    const [width, height] = view.size, context = canvas.getContext("2d");
    context.filter = muted ? "grayscale(1) brightness(0.55)" : "none";
    context.globalAlpha = 1;
    context.drawImage(view.photo, 0, 0, width, height);
    context.filter = "none";
    if (!pixels) return;
    const over = new OffscreenCanvas(width, height);
    over.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
    context.globalAlpha = opacity;
    context.drawImage(over, 0, 0);
  }

  return { IGNORE, UNNAMED, decode, rule, strongest, cut, meanIou, blend, heat, regions, errors, compose };
})();
