// Builds index.html and its scripts into the folder that `python -m playground.export` writes, which then is the page.
import { readdirSync, readFileSync } from "node:fs";
import { basename } from "node:path";
import { gzipSync } from "node:zlib";
import { defineConfig } from "vite";

const RUNTIME = "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm";

export default defineConfig({
  base: "./", // any folder of any server
  build: { outDir: process.env.PLAYGROUND_OUT ?? "../out/playground", emptyOutDir: false, target: "es2022",
    rollupOptions: { output: { entryFileNames: "page.js", assetFileNames: "page[extname]" } } },
  plugins: [{
    name: "files-beside-the-page",
    generateBundle(_, bundle) {
      for (const name in bundle) if (name.endsWith(".wasm")) delete bundle[name]; // 14 MB; compressed it is 4
      this.emitFile({ type: "asset", fileName: "runtime.wasm.gz", source: gzipSync(readFileSync(RUNTIME), { level: 9 }) });
      for (const name of readdirSync("../lessons").filter((name) => /^\d.*\.py$/.test(name)))
        this.emitFile({ type: "asset", fileName: `lessons/${basename(name, ".py")}.txt`, source: readFileSync(`../lessons/${name}`) });
    },
  }],
});
