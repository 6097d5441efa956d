// A service worker: files come from the network and, without one, from the copies of the last visit.

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open("segnext").then((cache) => cache.addAll(["./", "segment.js"]))); // what runs before this
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const keep = async () => {
    const cache = await caches.open("segnext");
    try {
      const response = await fetch(event.request);
      if (response.ok) event.waitUntil(cache.put(event.request, response.clone()));
      return response;
    } catch (error) {
      return (await cache.match(event.request, { ignoreSearch: true })) ?? Response.error();
    }
  };
  if (event.request.method === "GET") event.respondWith(keep());
});
