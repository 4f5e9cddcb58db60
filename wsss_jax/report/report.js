"use strict";
// The page: controls, the order of the cards, and which panel shows what. Text from data is only
// ever set as textContent. A card is decoded when it comes near the window and dropped when it
// leaves, so that hundreds of pictures stay light.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("report").textContent);
  const { classes, palettes, heat, scored, systems, rules, pictures } = data;
  const control = Object.fromEntries(
    ["mask", "sort", "class", "view", "threshold", "opacity", "side", "palette"].map((id) => [id, byId(id)]));
  const names = (field) => [...new Set(pictures.flatMap((picture) => picture[field]))];
  const mapNames = names("maps"), maskNames = names("masks");
  const present = names("labels").sort((a, b) => a - b);
  const anyTruth = pictures.some((picture) => picture.truth);
  const anyDoubt = pictures.some((picture) => picture.uncertainty !== null);
  const MANY = 8; // panels of one kind that are shown unasked
  const hidden = new Set([
    ...mapNames.slice(MANY).map((name) => `map:${name}`),
    ...maskNames.map((name) => `mask:${name}`),
    ...(anyDoubt ? ["whatif"] : []), // pictures to look at first, not to try rules on
  ]);
  let trusted = null; // the one system whose share of trust is shown; null for all in their colours
  const cards = pictures.map((picture, place) => makeCard(picture, place));

  function make(tag, text = "", kind = "") {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  }

  function addOptions(select, values) {
    for (const [value, text] of values) {
      const option = make("option", text);
      option.value = value;
      select.append(option);
    }
  }

  const percent = (value) => value == null ? "–" : `${(100 * value).toFixed(1)} %`;
  const colours = () => palettes[control.palette.value];
  const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

  /** IoU of a mask: of the chosen class, or the mean over the classes there. */
  function score(picture, mask = control.mask.value) {
    const ious = picture.ious[mask];
    if (!ious) return null;
    if (control.class.value) return ious[Number(control.class.value)];
    const known = ious.filter((value) => value !== null);
    return known.length ? known.reduce((a, b) => a + b) / known.length : null;
  }

  function makeCard(picture, place) {
    const card = { picture, place, only: null, near: false, view: null, panels: [] };
    card.element = make("article", "", "card");
    const header = make("header");
    header.append(make("h3", picture.id));
    card.chips = picture.labels.map((label, k) => {
      const chip = make("button", "", "chip");
      chip.type = "button";
      chip.title = "Show the maps of this class only";
      chip.append(make("i"), classes[label]);
      chip.addEventListener("click", () => {
        card.only = card.only === k ? null : k;
        refresh(card);
      });
      header.append(chip);
      return chip;
    });
    card.score = make("span", "", "score");
    header.append(card.score);
    card.row = make("div", "", "row");
    card.element.append(header, card.row);
    const add = (kind, name) => card.panels.push(makePanel(card, kind, name, card.row));
    add("photo", "Photo");
    if (picture.masks.length) add("chosen", "Mask");
    if (picture.truth) add("truth", "Truth");
    if (picture.truth && picture.masks.length) add("errors", "Errors");
    picture.maps.forEach((name) => add("map", name));
    picture.trust.forEach((name) => add("trust", name));
    picture.doubts.forEach((name) => add("doubt", name));
    picture.masks.forEach((name) => add("mask", name));
    if (picture.rules.length) addWhatIf(card);
    return card;
  }

  /** A second row: the mask of a rule of the reader's choice, beside the truth. */
  function addWhatIf(card) {
    const { picture } = card;
    card.whatif = whatif.controls({
      names: picture.rules,
      rules,
      changed: () => refresh(card),
      everywhere: (state) => {
        cards.forEach((other) => other.whatif?.take(state));
        refreshAll();
      },
      rank: picture.truth ? () => rank(card) : null,
    });
    card.second = make("div", "", "row");
    card.element.append(card.whatif.element, card.second);
    const kinds = [["if-mask", "What if"], ["if-truth", "Truth"], ["if-errors", "Errors of it"]];
    for (const [kind, name] of picture.truth ? kinds : kinds.slice(0, 1)) {
      card.panels.push(makePanel(card, kind, name, card.second));
    }
  }

  /** What each rule scores on the picture of a card, at its own threshold. */
  async function rank(card) {
    const { view, picture } = card, found = [];
    for (const name of picture.rules) {
      const mask = paint.cut(await paint.rule(view, name), picture.labels, rules[name].threshold ?? -1);
      found.push([name, paint.meanIou(mask, view.truth, scored)]);
    }
    return found;
  }

  function makePanel(card, kind, name, row) {
    const panel = { card, kind, name, element: make("figure"), canvas: make("canvas"), plane: null, mask: null };
    [panel.canvas.width, panel.canvas.height] = card.picture.size;
    panel.canvas.setAttribute("role", "img");
    panel.canvas.setAttribute("aria-label", `${name} of ${card.picture.id}`);
    const caption = make("figcaption");
    panel.label = make("span", name);
    panel.label.title = name;
    panel.read = make("span", "", "read");
    caption.append(panel.label, panel.read);
    panel.element.append(panel.canvas, caption);
    panel.canvas.addEventListener("pointermove", (event) => { panel.read.textContent = readAt(panel, event); });
    panel.canvas.addEventListener("pointerleave", () => { panel.read.textContent = panel.note || ""; });
    panel.canvas.tabIndex = 0;
    panel.canvas.addEventListener("click", () => large.open(panel));
    panel.canvas.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // else the same key press goes on to the Close button
      large.open(panel);
    });
    row.append(panel.element);
    return panel;
  }

  /** What lies under the pointer: a class, a kind of error, or a score. */
  function readAt(panel, event) {
    const box = panel.canvas.getBoundingClientRect(), [width, height] = panel.card.picture.size;
    const x = Math.min(width - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * width)));
    const y = Math.min(height - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * height)));
    const at = y * width + x;
    if (panel.plane) return (panel.plane[at] / 255).toFixed(2);
    if (panel.kind === "trust") return mostTrusted(panel.card.view.trust[panel.name], at);
    if (!panel.mask) return "";
    const value = panel.mask[at];
    return value === paint.IGNORE ? "ignored" : value === paint.UNNAMED ? "object" : classes[value] ?? `value ${value}`;
  }

  /** The two systems with the largest share of trust at one place. */
  function mostTrusted(shares, at) {
    const order = systems.map((system, k) => [shares[k][at], system.name]).sort((a, b) => b[0] - a[0]);
    return order.slice(0, 2).map(([share, name]) => `${name} ${Math.round(share / 2.55)} %`).join(", ");
  }

  function isShown(panel) {
    const chosen = control.mask.value;
    if (panel.kind === "chosen" || panel.kind === "errors") {
      return panel.card.picture.masks.includes(chosen) && !hidden.has(panel.kind);
    }
    if (panel.kind.startsWith("if-")) return !hidden.has("whatif");
    const named = ["map", "mask", "trust", "doubt"].includes(panel.kind);
    return !hidden.has(named ? `${panel.kind}:${panel.name}` : panel.kind);
  }

  function paintPanel(panel) {
    const { card, kind } = panel, view = card.view, opacity = Number(control.opacity.value);
    const [width] = card.picture.size, chosen = view.masks[control.mask.value];
    panel.plane = null; panel.mask = null; panel.note = "";
    if (kind === "photo") paint.compose(panel.canvas, view, null, 1, false);
    else if (kind === "map") paintMap(panel, opacity);
    else if (kind === "trust") paintTrust(panel, opacity);
    else if (kind === "doubt") paintHeat(panel, view.doubts[panel.name][0], opacity);
    else if (kind === "errors") paintErrors(panel, chosen, opacity);
    else if (kind === "if-errors") paintErrors(panel, card.cut, opacity);
    else if (kind === "if-mask") {
      panel.mask = card.cut;
      paint.compose(panel.canvas, view, paint.regions(panel.mask, colours(), width), opacity, false);
    } else {
      const isTruth = kind === "truth" || kind === "if-truth";
      panel.mask = isTruth ? view.truth : kind === "mask" ? view.masks[panel.name] : chosen;
      const value = isTruth ? null : score(card.picture, kind === "mask" ? panel.name : control.mask.value);
      if (value !== null) panel.note = percent(value);
      paint.compose(panel.canvas, view, paint.regions(panel.mask, colours(), width), opacity, false);
    }
    panel.read.textContent = panel.note;
  }

  function paintErrors(panel, mask, opacity) {
    const { view } = panel.card;
    panel.mask = mask;
    paint.compose(panel.canvas, view, paint.errors(mask, view.truth), opacity, true);
  }

  function paintHeat(panel, plane, opacity) {
    panel.plane = plane;
    paint.compose(panel.canvas, panel.card.view, paint.heat(plane, heat), opacity, false);
  }

  /** Every system in its colour, mixed by their shares; or the share of one as heat. */
  function paintTrust(panel, opacity) {
    const { view } = panel.card, shares = view.trust[panel.name];
    if (trusted !== null) return void paintHeat(panel, shares[trusted], opacity);
    const mixed = paint.blend(shares, systems.map((system) => system.colour));
    // Nearer to opaque than asked for: a colour dimmed by the photo is not that of the legend.
    paint.compose(panel.canvas, view, mixed, Math.sqrt(opacity), true);
  }

  /** The mask of the rule that was chosen for this card, and its IoU. */
  async function cutWhatIf(card) {
    const { view, picture } = card, planes = await paint.rule(view, card.whatif.rule());
    card.cut = paint.cut(planes, picture.labels, card.whatif.at());
    const value = view.truth && paint.meanIou(card.cut, view.truth, scored);
    card.whatif.say(view.truth ? `mean IoU ${percent(value)}` : "");
  }

  function paintMap(panel, opacity) {
    const { card } = panel, { view, picture } = card, planes = view.maps[panel.name];
    const [width] = picture.size, kind = control.view.value;
    if (kind === "heat") {
      const filtered = picture.labels.indexOf(Number(control.class.value || -1));
      const only = card.only ?? (filtered >= 0 ? filtered : null);
      paintHeat(panel, only !== null && planes.length > 1 ? planes[only] : paint.strongest(planes), opacity);
      return;
    }
    const mask = paint.cut(planes, picture.labels, Number(control.threshold.value));
    const named = planes.length === picture.labels.length;
    if (view.truth && named) panel.note = percent(paint.meanIou(mask, view.truth, scored));
    if (kind === "errors" && view.truth) return void paintErrors(panel, mask, opacity);
    panel.mask = mask;
    paint.compose(panel.canvas, view, paint.regions(mask, colours(), width), opacity, false);
  }

  async function refresh(card) {
    card.chips.forEach((chip, k) => {
      chip.setAttribute("aria-pressed", String(card.only === k));
      chip.firstChild.style.backgroundColor = css(colours()[card.picture.labels[k]]);
    });
    const value = score(card.picture), doubt = card.picture.uncertainty;
    const told = doubt === null ? "" : `uncertain ${percent(doubt)}`;
    card.score.textContent = told && value !== null ? `${told} · ` : told;
    if (value !== null) {
      const what = control.class.value ? classes[Number(control.class.value)] : "mean IoU";
      card.score.append(percent(value), make("small", what));
    }
    for (const panel of card.panels) {
      panel.element.hidden = !isShown(panel);
      if (panel.kind === "chosen") panel.label.textContent = panel.label.title = control.mask.value;
    }
    if (card.whatif) card.whatif.element.hidden = card.second.hidden = hidden.has("whatif");
    if (!card.near) return;
    if (!card.view) {
      card.loading ??= paint.decode(JSON.parse(byId(`picture-${card.place}`).textContent), card.picture.size);
      const view = await card.loading;
      card.loading = null;
      if (!card.near) return;
      card.view = view;
    }
    if (card.whatif && !hidden.has("whatif")) {
      await cutWhatIf(card);
      if (!card.view) return; // it left the window meanwhile
    }
    card.panels.filter((panel) => !panel.element.hidden).forEach(paintPanel);
    card.element.dataset.painted = "yes";
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const card = cards[Number(entry.target.dataset.place)];
      card.near = entry.isIntersecting;
      if (!card.near) card.view = null;
      else refresh(card);
    }
  }, { rootMargin: "500px" });

  let waiting = false;
  function refreshAll() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; cards.forEach(refresh); });
  }

  function arrange() {
    const wanted = control.class.value ? Number(control.class.value) : null;
    const how = control.sort.value, sign = how === "best" ? -1 : 1;
    const shown = cards.filter((card) => wanted === null || card.picture.labels.includes(wanted));
    const doubt = (card) => card.picture.uncertainty ?? -1;
    shown.sort((a, b) => {
      if (how === "doubt" && doubt(a) !== doubt(b)) return doubt(b) - doubt(a);
      const x = score(a.picture), y = score(b.picture);
      if (how === "id" || how === "doubt" || x === y) return a.picture.id < b.picture.id ? -1 : 1;
      if (x === null || y === null) return x === null ? 1 : -1; // unknown last, either way
      return sign * (x - y);
    });
    byId("cards").replaceChildren(...shown.map((card) => card.element));
    byId("count").textContent = shown.length === cards.length
      ? `${cards.length} pictures` : `${shown.length} of ${cards.length} pictures`;
    refreshAll();
  }

  /** One panel in full size; arrows go to its neighbours. */
  const large = (() => {
    const dialog = byId("large"), canvas = dialog.querySelector("canvas");
    let current = null;
    function open(panel) {
      current = panel;
      const [width, height] = panel.card.picture.size;
      [canvas.width, canvas.height] = [3 * width, 3 * height];
      canvas.getContext("2d").drawImage(panel.canvas, 0, 0, canvas.width, canvas.height);
      canvas.setAttribute("aria-label", `${panel.label.textContent} of ${panel.card.picture.id}`);
      dialog.querySelector("h3").textContent = `${panel.card.picture.id} · ${panel.label.textContent}`;
      dialog.querySelector("p").textContent = [panel.note, "← → other panels of this picture, Esc closes"].filter(Boolean).join(" · ");
      if (!dialog.open) dialog.showModal();
    }
    function turn(by) {
      const panels = current.card.panels.filter((panel) => !panel.element.hidden);
      open(panels[(panels.indexOf(current) + by + panels.length) % panels.length]);
    }
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") turn(1);
      if (event.key === "ArrowLeft") turn(-1);
    });
    byId("close").addEventListener("click", () => dialog.close());
    return { open };
  })();

  function addSwitches() {
    const box = byId("shown").querySelector("div");
    const group = (title, entries) => {
      if (entries.length) box.append(make("b", title));
      for (const [key, text] of entries) {
        const label = make("label"), tick = make("input");
        tick.type = "checkbox";
        tick.checked = !hidden.has(key);
        tick.addEventListener("change", () => {
          if (tick.checked) hidden.delete(key); else hidden.add(key);
          refreshAll();
        });
        label.append(tick, text);
        box.append(label);
      }
    };
    group("Maps", mapNames.map((name) => [`map:${name}`, name]));
    group("Trust and doubt", [
      ...names("trust").map((name) => [`trust:${name}`, name]), ...names("doubts").map((name) => [`doubt:${name}`, name]),
    ]);
    group("More masks", maskNames.map((name) => [`mask:${name}`, name]));
    group("And", [["photo", "Photo"], ["chosen", "Chosen mask"], ["truth", "Truth"], ["errors", "Errors"], ...(Object.keys(rules).length ? [["whatif", "What if"]] : [])]);
  }

  function showSettings() {
    for (const id of ["threshold", "opacity"]) control[id].nextElementSibling.value = Number(control[id].value).toFixed(2);
    control.side.nextElementSibling.value = `${control.side.value} px`;
    control.threshold.parentElement.classList.toggle("idle", control.view.value === "heat");
    byId("cards").style.setProperty("--side", `${control.side.value}px`);
    byId("colours").replaceChildren(...present.map((value) => {
      const entry = make("span"), swatch = make("i");
      swatch.style.backgroundColor = css(colours()[value]);
      entry.append(swatch, classes[value]);
      return entry;
    }));
  }

  /** One colour per system; a click shows where that one alone is trusted. */
  function showSystems() {
    const box = byId("systems");
    box.hidden = !names("trust").length;
    box.replaceChildren("trusted:", ...systems.map((system, k) => {
      const chip = make("button", "", "chip"), swatch = make("i");
      chip.type = "button";
      chip.title = "Show the share of this system alone";
      chip.setAttribute("aria-pressed", String(trusted === k));
      swatch.style.backgroundColor = css(system.colour);
      chip.append(swatch, system.name);
      chip.addEventListener("click", () => {
        trusted = trusted === k ? null : k;
        showSystems();
        refreshAll();
      });
      return chip;
    }));
  }

  function drawRamp() {
    const strip = new ImageData(new Uint8ClampedArray(heat.flatMap((colour) => [...colour, 255])), 256, 1);
    byId("ramp").getContext("2d").putImageData(strip, 0, 0);
  }

  /** Results: one panel of charts at a time, tables sorted by a click on a head. */
  function startResults() {
    const panels = [...document.querySelectorAll(".panel")], choice = byId("panel");
    addOptions(choice, panels.map((panel, k) => [k, panel.dataset.name]));
    byId("panel-choice").hidden = panels.length < 2;
    const show = () => panels.forEach((panel, k) => {
      panel.hidden = k !== Number(choice.value);
      panel.querySelector("h3").hidden = panels.length > 1; // the menu says it
    });
    choice.addEventListener("change", show);
    if (panels.length) show();
    document.querySelectorAll("#details table").forEach(makeSortable);
  }

  function makeSortable(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = make("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      if (body.rows[0]?.cells[column].classList.contains("number")) head.classList.add("number");
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const text = (row) => row.cells[column].textContent;
        const compare = (a, b) => {
          const [x, y] = [parseFloat(text(a)), parseFloat(text(b))];
          if (Number.isNaN(x) || Number.isNaN(y)) return text(a).localeCompare(text(b));
          return x - y;
        };
        body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * compare(a, b)));
      });
    });
  }

  function start() {
    addOptions(control.mask, maskNames.map((name) => [name, name]));
    control.mask.value = maskNames.at(-1) ?? "";
    addOptions(control.class, present.map((value) => {
      const count = pictures.filter((picture) => picture.labels.includes(value)).length;
      return [value, `${classes[value]} (${count})`];
    }));
    addOptions(control.palette, Object.keys(palettes).map((name) => [name, name]));
    control.mask.parentElement.hidden = maskNames.length === 0;
    const possible = { doubt: anyDoubt, worst: anyTruth, best: anyTruth, id: true };
    for (const option of control.sort.options) option.disabled = !possible[option.value];
    control.sort.value = Object.keys(possible).find((name) => possible[name]);
    byId("error-key").hidden = !anyTruth;
    const narrow = window.innerWidth <= 700; // a telephone: pictures first, two in a row
    byId("more").open = !narrow;
    if (narrow) control.side.value = 140;
    addSwitches();
    showSystems();
    drawRamp();
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    const apply = (event) => {
      showSettings();
      if (["mask", "sort", "class"].includes(event.target.id)) arrange(); else refreshAll();
    };
    // Sliders speak while they move ("input"), menus when a choice is made ("change").
    byId("controls").addEventListener("input", apply);
    byId("controls").addEventListener("change", apply);
    cards.forEach((card) => { card.element.dataset.place = card.place; });
    showSettings();
    startResults();
    arrange();
    cards.forEach((card) => watcher.observe(card.element));
  }
  start();
})();
