// Renders every picture of objects.json in every style: SVG icons through resvg, 3D ones as they ship (WebP).
// usage: node render.mjs OUT_FOLDER   (after `npm install` in this folder)
// Writes OUT/<style>/<hexcode>.{png,webp} and OUT/pictures.json. A few icons end resvg's process (a panic): the parent
// process starts another one, which leaves those out.
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

// Of our style names, the package that draws it.
const STYLES = {
  flat: "fluent-emoji-flat",
  cartoon: "noto",
  classic: "noto-v1",
  simple: "fxemoji",
};
const SIDE_PX = 160;
const PANICS = 40;

const here = path.dirname(new URL(import.meta.url).pathname);
const modules = path.join(here, "node_modules");
const read = (file) => JSON.parse(fs.readFileSync(file, "utf8"));
const plain = (hex) => hex.toUpperCase().replace(/-FE0F/g, "");
const named = (label) => label.toLowerCase().replaceAll("&", "and").replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");

const out = process.argv[2];
if (!out) throw new Error("usage: node render.mjs OUT_FOLDER");
const attempted = path.join(out, "attempted.txt");

function iconSet(name) {
  const folder = path.join(modules, "@iconify-json", name);
  const icons = read(path.join(folder, "icons.json"));
  const ofHex = new Map();
  const characters = path.join(folder, "chars.json");
  for (const [hex, icon] of Object.entries(fs.existsSync(characters) ? read(characters) : {})) {
    ofHex.set(plain(hex), [...(ofHex.get(plain(hex)) ?? []), icon]);
  }
  return { icons, ofHex };
}

/** The icon of an emoji in a set, and the picture's SVG. */
function svgOf(set, entry, others) {
  const hex = plain(entry.hexcode);
  const names = [...(set.ofHex.get(hex) ?? []), ...others.flatMap((other) => other.ofHex.get(hex) ?? []), named(entry.label)];
  const { icons } = set;
  for (const name of names.flatMap((name) => [name, name.replaceAll("-", "")])) {
    const icon = icons.icons[name] ?? icons.icons[icons.aliases?.[name]?.parent];
    if (!icon) continue;
    const [width, height] = [icon.width ?? icons.width ?? 16, icon.height ?? icons.height ?? 16];
    const box = `${icon.left ?? 0} ${icon.top ?? 0} ${width} ${height}`;
    return `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="${box}" width="${width}" height="${height}">${icon.body}</svg>`;
  }
  return undefined;
}

function render() {
  const { Resvg } = createRequire(import.meta.url)("@resvg/resvg-js");
  const objects = read(path.join(here, "objects.json"));
  const entries = new Map(read(path.join(modules, "emojibase-data/en/data.json")).map((entry) => [plain(entry.hexcode), entry]));
  const sets = Object.fromEntries(Object.entries(STYLES).map(([style, name]) => [style, iconSet(name)]));
  const solid = path.join(modules, "@lobehub/fluent-emoji-3d/assets");
  const done = new Set(fs.existsSync(attempted) ? fs.readFileSync(attempted, "utf8").split("\n") : []);
  const pictures = [];
  const missing = {};
  for (const [object, { emoji }] of Object.entries(objects)) {
    for (const character of emoji) {
      const hex = plain([...character].map((c) => c.codePointAt(0).toString(16).padStart(4, "0")).join("-"));
      const entry = entries.get(hex);
      if (!entry) throw new Error(`objects.json: ${object}: no emoji ${character} (${hex})`);
      for (const [style, set] of Object.entries(sets)) {
        const others = Object.values(sets).filter((other) => other !== set);
        const svg = svgOf(set, entry, others);
        const file = `${style}/${hex}.png`;
        if (!svg) {
          missing[style] = [...(missing[style] ?? []), object];
          continue;
        }
        if (!done.has(file)) {
          fs.appendFileSync(attempted, `${file}\n`);
          const png = new Resvg(svg, { fitTo: { mode: "width", value: SIDE_PX }, font: { loadSystemFonts: false } }).render().asPng();
          fs.writeFileSync(path.join(out, file), png);
        }
        if (fs.existsSync(path.join(out, file))) pictures.push({ object, emoji: character, style, file });
      }
      const webp = [plain(entry.hexcode), entry.hexcode].map((h) => `${h.toLowerCase()}.webp`);
      const found = [...webp, `${hex.toLowerCase()}-fe0f.webp`].find((name) => fs.existsSync(path.join(solid, name)));
      if (found) {
        const file = `3d/${hex}.webp`;
        fs.copyFileSync(path.join(solid, found), path.join(out, file));
        pictures.push({ object, emoji: character, style: "3d", file });
      } else missing["3d"] = [...(missing["3d"] ?? []), object];
    }
  }
  fs.writeFileSync(path.join(out, "pictures.json"), JSON.stringify(pictures, null, 1));
  for (const [style, names] of Object.entries(missing)) console.log(`${style}: no picture of ${names.join(", ")}`);
  console.log(`${pictures.length} pictures of ${Object.keys(objects).length} objects`);
}

if (process.argv[3] === "once") render();
else {
  for (const style of [...Object.keys(STYLES), "3d"]) fs.mkdirSync(path.join(out, style), { recursive: true });
  fs.rmSync(attempted, { force: true });
  for (let panics = 0; panics < PANICS; panics++) {
    const child = spawnSync(process.execPath, [process.argv[1], out, "once"], { stdio: "inherit" });
    if (child.status === 0) process.exit(0);
    if (child.status === 1) process.exit(1);
  }
  process.exit(1);
}
