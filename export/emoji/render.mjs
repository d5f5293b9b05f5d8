// Renders every picture of objects.json: flat SVG icons through resvg, 3D ones as they ship (WebP).
// usage: node render.mjs OUT_FOLDER   (after `npm install` in this folder)
// Writes OUT/<style>/<hexcode>.{png,webp} and OUT/pictures.json.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const { Resvg } = require("@resvg/resvg-js");
const here = path.dirname(new URL(import.meta.url).pathname);
const modules = path.join(here, "node_modules");
const read = (file) => JSON.parse(fs.readFileSync(file, "utf8"));

const out = process.argv[2];
if (!out) throw new Error("usage: node render.mjs OUT_FOLDER");
const objects = read(path.join(here, "objects.json"));
const emoji = read(path.join(modules, "emojibase-data/en/data.json"));
const flat = read(path.join(modules, "@iconify-json/fluent-emoji-flat/icons.json"));
const chars = read(path.join(modules, "@iconify-json/fluent-emoji-flat/chars.json"));
const iconOfHex = new Map();
for (const [hex, icon] of Object.entries(chars)) {
  const key = hex.toUpperCase().replace(/-FE0F/g, "");
  iconOfHex.set(key, [...(iconOfHex.get(key) ?? []), icon]);
}
const solid = path.join(modules, "@lobehub/fluent-emoji-3d/assets");
fs.mkdirSync(path.join(out, "flat"), { recursive: true });
fs.mkdirSync(path.join(out, "3d"), { recursive: true });

const pictures = [];
const missing = [];
for (const label of Object.keys(objects)) {
  const found = emoji.find((e) => e.label === label);
  if (!found) throw new Error(`objects.json: no emoji is called "${label}"`);
  const hex = found.hexcode.replace(/-FE0F/g, "");
  const candidates = [label.toLowerCase().replace(/[^a-z0-9]+/g, "-"), ...(iconOfHex.get(hex.toUpperCase()) ?? [])];
  const icon = candidates.map((name) => flat.icons[name] ?? flat.icons[flat.aliases?.[name]?.parent]).find(Boolean);
  if (icon) {
    const width = icon.width ?? flat.width ?? 32;
    const height = icon.height ?? flat.height ?? 32;
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">${icon.body}</svg>`;
    const file = `flat/${hex}.png`;
    const png = new Resvg(svg, { fitTo: { mode: "width", value: 256 }, font: { loadSystemFonts: false } }).render().asPng();
    fs.writeFileSync(path.join(out, file), png);
    pictures.push({ label, style: "flat", file });
  } else missing.push(`flat ${label}`);
  const webp = [hex, `${hex}-fe0f`].map((h) => path.join(solid, `${h.toLowerCase()}.webp`)).find((f) => fs.existsSync(f));
  if (webp) {
    const file = `3d/${hex}.webp`;
    fs.copyFileSync(webp, path.join(out, file));
    pictures.push({ label, style: "3d", file });
  } else missing.push(`3d ${label}`);
}
fs.writeFileSync(path.join(out, "pictures.json"), JSON.stringify(pictures, null, 1));
console.log(`${pictures.length} pictures of ${Object.keys(objects).length} objects; missing: ${missing.join(", ") || "none"}`);
