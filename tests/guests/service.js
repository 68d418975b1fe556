// The service of service.rs in Node: Buffers are outside of V8's heap, by malloc.

const http = require('http'), zlib = require('zlib');
const kept = [];
const say = (response, what) => response.end(JSON.stringify(what));
const answers = {
    work: (response, seed) => {
        const buffer = Buffer.allocUnsafeSlow(20000).map((_, at) => at * seed);
        zlib.gzip(buffer, (_, packed) => zlib.gunzip(packed, (_, unpacked) => {
            say(response, [unpacked.length, unpacked.reduce((sum, byte) => sum + byte, 0)]);
        }));
    },
    keep: (response, count) => {
        while (kept.length < count) kept.push(Buffer.allocUnsafeSlow(1 << 20).fill(kept.length));
        kept.length = count;
        say(response, [kept.length]);
    },
    kept: response => {
        say(response, [kept.filter((buffer, at) => buffer.equals(Buffer.alloc(1 << 20, at & 255))).length]);
    },
    memory: response => {
        // The first finds what is no longer used, and the second waits until that is freed.
        gc();
        gc();
        const { arrayBuffers, external } = process.memoryUsage();
        say(response, [external, arrayBuffers]);
    },
};
const server = http.createServer((request, response) => {
    const [, what, number] = request.url.split('/');
    answers[what](response, Number(number));
});
server.listen(0, '127.0.0.1', () => console.log('ready', server.address().port));
