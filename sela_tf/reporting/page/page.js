"use strict";
// The data stand in script elements as compressed, base64-encoded text. Text of images and classes is only ever set as textContent.
(async () => {
  const byId = (id) => document.getElementById(id);
  const decoded = (id) => Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  const unpacked = async (name) => {
    const stream = new Blob([decoded(`data-${name}`)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  };
  const facts = JSON.parse(new TextDecoder().decode(await unpacked("facts")));
  const kinds = { int8: Int8Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array, float32: Float32Array };
  const data = {};
  await Promise.all(Object.entries(facts.kinds).map(async ([name, kind]) => { data[name] = new kinds[kind](await unpacked(name)); }));
  const count = facts.sources.length, K = facts.num_clusters, T = facts.num_heads;
  let head = 0;

  // ---- what the arrays hold -------------------------------------------------------------------------------------------------------
  const clusterOf = (i, h = head) => data.clusters[h * count + i];
  const marginOf = (i, h = head) => data.margins[h * count + i] / 127;
  const typicalOf = (i) => data.typical[head * count + i];
  const className = (i) => {
    const number = data.classes ? data.classes[i] - 1 : -1;
    return number < 0 ? "" : facts.class_names ? facts.class_names[number] : String(number);
  };
  const ofCluster = (name, k) => data[name][head * K + k];
  const membersByHead = new Map();
  const members = (k) => {
    if (!membersByHead.has(head)) {
      const lists = Array.from({ length: K }, () => []);
      for (let i = 0; i < count; i++) lists[clusterOf(i)].push(i);
      membersByHead.set(head, lists);
    }
    return membersByHead.get(head)[k];
  };
  const shares = (list) => {
    const counts = new Map();
    for (const i of list) { const name = className(i); if (name) counts.set(name, (counts.get(name) || 0) + 1); }
    return [...counts].sort((a, b) => b[1] - a[1]);
  };

  // ---- names: those of the run, then what was typed, which the browser keeps -------------------------------------------------------
  const key = `sela-tf names ${facts.run}`;
  const kept = () => { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } };
  // Kept are the names, and those of the last download. On a page that was made with other names, what was typed since the download is
  // changed again, and the rest is as the page has it.
  const names = structuredClone(facts.names);
  let downloaded = structuredClone(facts.names);
  const changed = ({ names: typed, downloaded: before }) => {
    for (const kind of ["clusters", "images"]) {
      for (const place of new Set([...Object.keys(typed[kind]), ...Object.keys(before[kind])])) {
        if (typed[kind][place] === before[kind][place]) continue;
        if (typed[kind][place] === undefined) delete names[kind][place]; else names[kind][place] = typed[kind][place];
      }
    }
  };
  // The page may be open in several tabs: each takes up what the others have kept before it changes a name.
  const takeUp = () => {
    const found = kept();
    if (!found) return;
    if (found.page === facts.page) { Object.assign(names, found.names); downloaded = found.downloaded; } else changed(found);
  };
  takeUp();
  const plain = (text) => text.replace(/[\s\p{Cc}\p{Zl}\p{Zp}]+/gu, " ").trim();
  const nameOf = (k, h = head) => names.clusters[`${h},${k}`] || "";
  const isMarked = (i) => Object.hasOwn(names.images, facts.sources[i]);
  const keep = () => {
    try { localStorage.setItem(key, JSON.stringify({ page: facts.page, names, downloaded })); } catch { byId("named").title = "this browser keeps nothing: download before you leave"; }
    showCounts();
  };
  const setName = (k, text) => {
    const name = plain(text);
    if (name) names.clusters[`${head},${k}`] = name; else delete names.clusters[`${head},${k}`];
  };
  const setImage = (i, name) => {
    takeUp();
    if (name === null) delete names.images[facts.sources[i]]; else names.images[facts.sources[i]] = plain(name);
    keep();
  };
  const csv = () => {
    // Text that a spreadsheet would compute stands behind an apostrophe, as sela_tf.data.csv_rows has it.
    const neutral = (text) => (/^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text) ? `'${text}` : text);
    const quoted = (text) => (/[",;\t\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const cell = (text) => quoted(neutral(text));
    const byNumber = Object.entries(names.clusters).map(([place, name]) => [...place.split(",").map(Number), name]);
    byNumber.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const lines = byNumber.map(([h, k, name]) => `${h},${k},,${cell(name)}`);
    for (const [source, name] of Object.entries(names.images)) lines.push(`,,${cell(source)},${cell(name)}`);
    return ["head,cluster,source,name", ...lines, ""].join("\n");
  };
  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const showCounts = () => {
    const clusters = Object.keys(names.clusters).length, images = Object.keys(names.images).length;
    byId("named").textContent = [clusters ? `${plural(clusters, "cluster")} named` : "", images ? `${plural(images, "image")} marked` : ""].filter(Boolean).join(", ");
    byId("download").disabled = !(clusters + images);
    byId("known-names").replaceChildren(...[...new Set(Object.values(names.clusters))].sort().map((name) => el("option", { value: name })));
  };

  // ---- elements -------------------------------------------------------------------------------------------------------------------
  const el = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name in made && name !== "list") made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };
  const pictures = facts.sprites, urls = [];
  const zoom = pictures ? Math.max(1, Math.round(52 / Math.max(pictures.height, pictures.width))) : 1;
  const spriteUrl = (number) => (urls[number] ||= URL.createObjectURL(new Blob([decoded(`sprite-${number}`)], { type: pictures.kind })));
  const paint = (element, i, scale) => {
    const { columns, cells, height, width } = pictures, cell = i % cells, sprite = Math.floor(i / cells);
    const rows = Math.ceil(Math.min(cells, count - sprite * cells) / columns);
    element.style.backgroundImage = `url(${spriteUrl(sprite)})`;
    element.style.backgroundSize = `${columns * width * scale}px ${rows * height * scale}px`;
    element.style.backgroundPosition = `-${(cell % columns) * width * scale}px -${Math.floor(cell / columns) * height * scale}px`;
    element.style.imageRendering = scale > 1 ? "pixelated" : "auto";
  };
  if (pictures) {
    document.documentElement.style.setProperty("--cell-height", `${pictures.height * zoom}px`);
    document.documentElement.style.setProperty("--cell-width", `${pictures.width * zoom}px`);
  }
  const describe = (i) => [facts.sources[i], className(i), data.held_out[i] ? "held out" : ""].filter(Boolean).join(", ");
  const thumb = (i) => {
    const made = el("a", { className: "thumb", href: `#image/${i}`, title: describe(i), "aria-label": describe(i) });
    made.dataset.image = i;
    made.classList.toggle("held", !!data.held_out[i]);
    made.classList.toggle("marked", isMarked(i));
    if (pictures) paint(made, i, zoom); else { made.classList.add("text"); made.textContent = facts.sources[i]; }
    return made;
  };
  // A strip is filled when it comes near to the screen, so that sprites are decoded as one scrolls.
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      target.append(...target.images.map(thumb));
    }
  }, { rootMargin: "300px" });
  const strip = (images, one = false) => {
    const made = el("div", { className: one ? "strip one" : "strip" });
    made.images = images;
    if (images.length) seen.observe(made); else made.append(el("span", { className: "empty" }, "none"));
    return made;
  };
  const nameField = (value, hint, set) =>
    el("input", { type: "text", className: "name", maxLength: 200, value, placeholder: hint, list: "known-names", "aria-label": hint, onchange: (event) => { takeUp(); set(event.target.value); keep(); } });
  const fixed = (value, digits = 2) => value.toFixed(digits);
  const clusterFacts = (k) => {
    const list = members(k), held = list.filter((i) => data.held_out[i]).length, top = shares(list)[0];
    const words = [`${plural(ofCluster("sizes", k), "training image")}, ${held} held out`, `margin ${fixed(ofCluster("confidence", k))}`];
    if (top) words.push(`${Math.round((100 * top[1]) / list.length)} % ${top[0]}`, `entropy ${fixed(ofCluster("entropy", k))}`);
    if (T > 1) words.push(`disagreement ${fixed(ofCluster("cluster_disagreement", k))}`);
    return words.join(" · ");
  };
  const clusterField = (k) => nameField(nameOf(k), `name of cluster ${k}`, (text) => setName(k, text));
  const byTypical = (list) => list.slice().sort((a, b) => typicalOf(a) - typicalOf(b));
  const byMargin = (list) => list.slice().sort((a, b) => marginOf(a) - marginOf(b) || typicalOf(b) - typicalOf(a));
  const clusterRow = (k) =>
    el("section", { className: "row" },
      el("div", { className: "bar" }, el("a", { href: `#cluster/${k}` }, `cluster ${k}`), clusterField(k), el("span", { className: "facts" }, clusterFacts(k))),
      strip(byTypical(members(k)).slice(0, 24), true));

  // ---- views ----------------------------------------------------------------------------------------------------------------------
  const sorts = {
    confidence: ["mean margin, highest first", (k) => -ofCluster("confidence", k)],
    unsure: ["mean margin, lowest first", (k) => ofCluster("confidence", k)],
    ...(data.entropy ? { entropy: ["entropy of the classes, lowest first", (k) => ofCluster("entropy", k)] } : {}),
    size: ["size, largest first", (k) => -ofCluster("sizes", k)],
    ...(T > 1 ? { disagreement: ["disagreement of the heads, highest first", (k) => -ofCluster("cluster_disagreement", k)] } : {}),
    number: ["number", (k) => k],
  };
  let sort = "confidence";
  const allClusters = () => Array.from({ length: K }, (_, k) => k);
  const viewClusters = () => {
    const choice = el("select", { id: "sort", onchange: (event) => { sort = event.target.value; show(); } },
      ...Object.entries(sorts).map(([name, [words]]) => el("option", { value: name, selected: name === sort }, words)));
    const order = allClusters().sort((a, b) => sorts[sort][1](a) - sorts[sort][1](b) || a - b);
    return [
      el("h1", {}, plural(K, "cluster")),
      el("div", { className: "bar" }, el("label", {}, "Sort by ", choice), el("span", { className: "fine" }, "The most typical members first; dashed: held out.")),
      ...order.map(clusterRow),
    ];
  };
  const part = (title, content) => [el("h2", {}, title), content];
  const scattered = (list) => list.map((i) => [(i * 2654435761) % 4294967296, i]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
  const viewCluster = (k) => {
    if (!(k in allClusters())) return [el("p", {}, `There is no cluster ${k}.`)];
    const list = members(k), training = list.filter((i) => !data.held_out[i]), held = list.filter((i) => data.held_out[i]);
    const more = el("button", { onclick: () => more.replaceWith(strip(byTypical(list))) }, `show all ${list.length}`);
    const near = Array.from(data.cluster_neighbours.subarray((head * K + k) * 6, (head * K + k + 1) * 6)).filter((other) => other >= 0);
    const classes = shares(list);
    return [
      el("h1", {}, `Cluster ${k}`),
      el("div", { className: "bar" }, clusterField(k), el("span", { className: "facts" }, clusterFacts(k)), el("span", { className: "fine" }, "x on a focused image: it does not belong here")),
      ...part("Typical, training", strip(byTypical(training).slice(0, 16))),
      ...part("At the border, training", strip(byMargin(training).slice(0, 16))),
      ...part("At random, training", strip(scattered(training).slice(0, 16))),
      ...part(`Held out: ${held.length}`, strip(byTypical(held).slice(0, 48))),
      ...part("All", more),
      ...(classes.length ? part("Classes", el("table", {}, ...classes.slice(0, 12).map(([name, n]) => el("tr", {}, el("th", {}, name), el("td", {}, String(n)), el("td", {}, `${Math.round((100 * n) / list.length)} %`))))) : []),
      ...part("Nearest clusters", el("div", {}, ...near.map(clusterRow))),
    ];
  };
  const groupsByHead = new Map();
  const groupsOf = (number) => {
    const merges = data[`merges_${head}`], pairs = merges.length / 2, joined = Math.max(0, pairs + 1 - number);
    const parts = new Map();
    const filled = allClusters().filter((k) => members(k).length);
    for (const k of filled) parts.set(k, [k]);
    for (let i = 0; i < joined; i++) {
      const [a, b] = [merges[2 * i], merges[2 * i + 1]];
      parts.set(K + i, [...parts.get(a), ...parts.get(b)]);
      parts.delete(a); parts.delete(b);
    }
    const size = (group) => group.reduce((sum, k) => sum + ofCluster("sizes", k), 0);
    return [...parts.values()].sort((a, b) => size(b) - size(a));
  };
  const viewGroups = () => {
    const filled = data[`merges_${head}`].length / 2 + 1, proposed = facts.proposed[head];
    const list = el("div");
    const fill = (number) => {
      groupsByHead.set(head, number);
      list.replaceChildren(...groupsOf(number).map((group) => {
        const given = [...new Set(group.map((k) => nameOf(k)))];
        const field = nameField(given.length === 1 ? given[0] : "", given.length === 1 ? `name of ${plural(group.length, "cluster")}` : plural(given.filter(Boolean).length, "name"),
          (text) => { for (const k of group) setName(k, text); });
        const all = group.flatMap(members), top = shares(all)[0];
        const words = `${plural(group.length, "cluster")}, ${plural(all.length, "image")}${top ? ` · ${Math.round((100 * top[1]) / all.length)} % ${top[0]}` : ""}`;
        const links = el("details", {}, el("summary", {}, words), ...group.flatMap((k) => [el("a", { href: `#cluster/${k}` }, nameOf(k) || String(k)), " "]));
        const each = Math.max(1, Math.floor(24 / group.length));
        return el("section", { className: "row" }, el("div", { className: "bar" }, field, links),
          strip(group.slice(0, 48).flatMap((k) => byTypical(members(k)).slice(0, each))));
      }));
    };
    const number = groupsByHead.get(head) || proposed;
    const slider = el("input", { type: "range", min: 1, max: filled, value: number, "aria-label": "number of groups", oninput: () => { box.value = slider.value; fill(+slider.value); } });
    const box = el("input", { type: "number", id: "groups", min: 1, max: filled, value: number, onchange: () => {
      box.value = slider.value = Math.min(filled, Math.max(1, Math.round(+box.value) || proposed)); fill(+box.value); } });
    fill(number);
    return [
      el("h1", {}, "Groups of clusters"),
      el("div", { className: "bar" }, slider, el("label", {}, box, " groups"), el("span", { className: "fine" }, `proposed: ${proposed}. A name goes to all clusters of a group.`)),
      list,
    ];
  };
  const reasons = {
    spans: "the same image in training and held-out images", exact: "exact duplicates", near: "near-duplicates", other_class: "its neighbours are of another class",
    outlier: "far from all others", disagree: "the heads disagree", low_margin: "between two clusters",
  };
  let reason = "";
  const viewLook = () => {
    const { first, rankings, duplicates } = facts.review;
    const whyOf = (group) => (group.spans ? "spans" : group.kind);
    const entries = reason in rankings ? rankings[reason].map((i) => ({ i, why: reason }))
      : reason ? duplicates.filter((group) => whyOf(group) === reason).map((group) => ({ i: group.images[0], group, why: reason }))
      : first.map(([i, why, number]) => ({ i, group: duplicates[number], why: duplicates[number] ? whyOf(duplicates[number]) : why }));
    const found = Object.keys(reasons).filter((why) => why in rankings || duplicates.some((group) => whyOf(group) === why));
    const choice = el("select", { id: "reason", onchange: (event) => { reason = event.target.value; show(); } },
      el("option", { value: "" }, "every reason"), ...found.map((why) => el("option", { value: why, selected: why === reason }, reasons[why])));
    return [
      el("h1", {}, "What to look at first"),
      el("div", { className: "bar" }, el("label", {}, "Show ", choice), el("span", { className: "fine" }, `${entries.length} to look at, the most urgent first`)),
      ...entries.slice(0, 500).map(({ i, group, why }, rank) =>
        el("section", { className: "row" },
          el("div", { className: "bar" }, el("span", {}, `${rank + 1}.`), el("a", { href: `#image/${i}` }, facts.sources[i]), el("span", { className: "reason" }, reasons[why] + (className(i) ? ` · class ${className(i)}` : "")),
            el("a", { href: `#cluster/${clusterOf(i)}` }, nameOf(clusterOf(i)) || `cluster ${clusterOf(i)}`)),
          strip(group ? group.images : [i, ...neighbours(i).slice(0, 5)], true))),
    ];
  };
  const neighbours = (i) => Array.from(data.nearest.subarray(i * facts.num_nearest, (i + 1) * facts.num_nearest));
  const viewImage = (i) => {
    if (!(i in facts.sources)) return [el("p", {}, `There is no image ${i}.`)];
    const large = el("div", { className: "large" });
    if (pictures) {
      const scale = Math.max(1, Math.round(224 / Math.max(pictures.height, pictures.width)));
      large.style.width = `${pictures.width * scale}px`;
      large.style.height = `${pictures.height * scale}px`;
      paint(large, i, scale);
    }
    const heads = Array.from({ length: T }, (_, h) =>
      el("tr", {}, el("th", {}, T > 1 ? `head ${h}` : "cluster"), el("td", {}, el("a", { href: `#cluster/${clusterOf(i, h)}`, onclick: () => chooseHead(h) }, nameOf(clusterOf(i, h), h) || String(clusterOf(i, h)))), el("td", {}, `margin ${fixed(marginOf(i, h))}`)));
    const where = nameField(isMarked(i) ? names.images[facts.sources[i]] : "", "where it belongs", (text) => { mark.checked = true; setImage(i, text); });
    where.id = "belongs";
    const mark = el("input", { type: "checkbox", id: "mark", checked: isMarked(i), onchange: () => { setImage(i, mark.checked ? where.value : null); } });
    const same = facts.review.duplicates.filter((group) => group.images.includes(i)).flatMap((group) => group.images).filter((other) => other !== i);
    return [
      el("h1", {}, facts.sources[i]),
      el("div", { className: "figure" }, large,
        el("div", {},
          el("p", {}, data.held_out[i] ? "held out" : "training", className(i) ? `, class ${className(i)}` : ""),
          el("table", {}, ...heads, ...(T > 1 ? [el("tr", {}, el("th", {}, "disagreement"), el("td", {}, fixed(data.disagreement[i] / 255)))] : [])),
          data.can_mark[i] ? el("p", {}, el("label", {}, mark, " does not belong in its cluster"), " ", where) : null)),
      ...part("Nearest images", strip(neighbours(i))),
      ...(same.length ? part("Duplicates", strip(same)) : []),
    ];
  };
  const SHOWN = 300;
  const viewSearch = (query) => {
    const wanted = query.toLowerCase(), has = (text) => text.toLowerCase().includes(wanted), found = [];
    const number = /^(cluster )?\d+$/.test(wanted) ? +wanted.replace("cluster ", "") : -1;
    const clusters = allClusters().filter((k) => k === number || (nameOf(k) && has(nameOf(k))));
    for (let i = 0; i < count; i++) if (has(facts.sources[i]) || has(className(i)) || has(names.images[facts.sources[i]] || "")) found.push(i);
    return [
      el("h1", {}, `Search: ${query}`),
      ...part(plural(clusters.length, "cluster"), el("div", {}, ...clusters.map(clusterRow))),
      ...part(plural(found.length, "image") + (found.length > SHOWN ? `, the first ${SHOWN}` : ""), strip(found.slice(0, SHOWN))),
    ];
  };

  // ---- the address says what is shown ----------------------------------------------------------------------------------------------
  const views = { clusters: viewClusters, cluster: (k) => viewCluster(+k), groups: viewGroups, look: viewLook, image: (i) => viewImage(+i), search: viewSearch };
  const show = () => {
    const [, name, rest] = location.hash.match(/^#([a-z]+)(?:\/(.*))?$/) || [null, "overview", ""];
    const view = Object.hasOwn(views, name) ? views[name] : null, place = byId("view");
    let asked = rest || "";
    // An address that was typed or cut need not be encoded.
    try { asked = decodeURIComponent(asked); } catch { /* as it is */ }
    seen.disconnect();
    place.replaceChildren(...(view ? view(asked) : []));
    place.hidden = !view;
    byId("overview").hidden = !!view;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#${view ? name : "overview"}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
    if (name !== "search" && document.activeElement !== byId("search")) byId("search").value = "";
  };
  const chooseHead = (h) => { head = h; byId("head").value = h; };
  if (T > 1) {
    byId("heads").hidden = false;
    byId("head").append(...Array.from({ length: T }, (_, h) => el("option", { value: h }, String(h))));
    byId("head").addEventListener("change", (event) => { head = +event.target.value; show(); });
  }
  let last = location.hash;
  window.addEventListener("hashchange", () => { show(); if (!location.hash.startsWith("#search") || !last.startsWith("#search")) window.scrollTo(0, 0); last = location.hash; });
  let waiting;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { location.hash = event.target.value ? `#search/${encodeURIComponent(event.target.value)}` : "#clusters"; }, 200);
  });
  byId("download").addEventListener("click", () => {
    const link = el("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: "names.csv" });
    link.click();
    downloaded = structuredClone(names);
    keep();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
    if (event.key === "x" && event.target.dataset.image && data.can_mark[event.target.dataset.image]) {
      const i = +event.target.dataset.image;
      setImage(i, isMarked(i) ? null : "");
      for (const each of document.querySelectorAll(`.thumb[data-image="${i}"]`)) each.classList.toggle("marked", isMarked(i));
    }
  });
  window.addEventListener("storage", () => { takeUp(); showCounts(); });
  showCounts();
  show();
  document.documentElement.dataset.ready = "yes";
})();
