import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";
import { licences } from "./build/licences";

// Where `npm run dev` finds a vbmd that was started with --web; log in there first, by its link, on this port.
const daemon = process.env["VBM_WEB"] ?? "http://127.0.0.1:8080";
const toDaemon = {
  target: daemon,
  changeOrigin: true,
  ws: true,
  // vbmd takes changes from its own page only; the development server speaks for it.
  headers: { origin: daemon },
};

export default defineConfig({
  plugins: [react(), licences()],
  build: {
    // noVNC uses top-level await. Every browser that PatternFly 6 supports has it.
    target: "es2022",
    // No data: URLs but those that libraries make: the page's policy stays short.
    assetsInlineLimit: 0,
    // The two consoles are parts of their own; the rest is PatternFly, loaded once and cached for good.
    chunkSizeWarningLimit: 1500,
  },
  server: { proxy: { "/v1": toDaemon, "/login": toDaemon, "/logout": toDaemon } },
  test: { include: ["src/**/*.test.ts"], environment: "node" },
});
