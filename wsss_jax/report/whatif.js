"use strict";
// What would another rule have made of this picture? The controls below each picture: a menu of
// rules, the threshold, and what they come to. Masks are cut in paint.js, shown by report.js.
const whatif = (() => {
  function make(tag, text = "", kind = "") {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  }

  function button(text, title, pressed) {
    const element = make("button", text);
    element.type = "button";
    element.title = title;
    element.addEventListener("click", pressed);
    return element;
  }

  function option(name, text) {
    const element = make("option", text);
    element.value = name;
    return element;
  }

  /** The menu in the groups of the rules, in their order. */
  function grouped(names, rules) {
    const groups = new Map();
    for (const name of names) {
      const title = rules[name].group;
      if (!groups.has(title)) groups.set(title, Object.assign(make("optgroup"), { label: title }));
      groups.get(title).append(option(name, name));
    }
    return [...groups.values()];
  }

  /** The menu by what each rule scores on this picture. */
  function ranked(scores) {
    const sorted = [...scores].sort((a, b) => (b[1] ?? -1) - (a[1] ?? -1));
    return sorted.map(([name, value]) =>
      option(name, `${value == null ? "–" : (100 * value).toFixed(1)} · ${name}`));
  }

  /**
   * Controls of one picture. names: its rules. changed(): after every choice. everywhere(state):
   * the same for all pictures. rank(): promises [name, IoU] of every rule at its own threshold, or
   * null where there is no truth to rank by. `at()` is where the rule cuts; `say(text)` shows a result.
   */
  function controls({ names, rules, changed, everywhere, rank }) {
    const element = make("div", "", "whatif"), menu = make("select"), slider = make("input");
    const output = make("output"), verdict = make("span", "", "verdict");
    const threshold = make("label", "cut at", "slider");
    menu.setAttribute("aria-label", "Rule");
    menu.append(...grouped(names, rules));
    Object.assign(slider, { type: "range", min: 0, max: 1, step: 0.01 });
    slider.setAttribute("aria-label", "Threshold of the rule");
    threshold.append(slider, output);
    const own = button("own threshold", "The one that the rule has by itself", () => choose(menu.value));
    verdict.title = "Cut here, from maps of at most 96 cells: a cell's width off what was decided in full";
    const name = make("label", "What if ");
    name.append(menu);
    element.append(name, threshold, own);
    if (rank) {
      element.append(button("rank rules", "Sort the menu by IoU on this picture, each rule at its own threshold",
        async () => {
          const before = menu.value;
          menu.replaceChildren(...ranked(await rank()));
          menu.value = before;
        }));
    }
    element.append(button("use for all pictures", "This rule and threshold on every picture",
      () => everywhere({ rule: menu.value, threshold: Number(slider.value) })));
    element.append(verdict);
    menu.addEventListener("change", () => choose(menu.value));
    slider.addEventListener("input", () => { show(); changed(); });

    function show() {
      const fixed = rules[menu.value].threshold;
      threshold.hidden = own.hidden = fixed === null; // no background: the highest score wins
      own.disabled = Number(slider.value) === fixed;
      output.value = Number(slider.value).toFixed(2);
    }
    function set(rule, at) {
      menu.value = rule;
      slider.value = at ?? 0;
      show();
    }
    function choose(rule) {
      set(rule, rules[rule].threshold);
      changed();
    }
    set(names.at(-1), rules[names.at(-1)].threshold);
    return {
      element,
      rule: () => menu.value,
      at: () => (rules[menu.value].threshold === null ? -1 : Number(slider.value)),
      take: (state) => { if (names.includes(state.rule)) set(state.rule, state.threshold); },
      say: (text) => { verdict.textContent = text; },
    };
  }

  return { controls };
})();
