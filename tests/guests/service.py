# The service of service.rs in Python.

import ctypes, http.server, json, zlib

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Mallinfo2
kept = []


def work(seed):
    plain = bytes([at * seed & 255 for at in range(20000)])
    unpacked = zlib.decompress(zlib.compress(plain))
    return [len(unpacked), sum(unpacked)]


def keep(count):
    while len(kept) < count:
        kept.append(bytes([len(kept) & 255]) * (1 << 20))
    del kept[count:]
    return [len(kept)]


def check(_):
    return [sum(block == bytes([at & 255]) * (1 << 20) for at, block in enumerate(kept))]


# What glibc has given, and what of that the program's own code has asked for.
def memory(_):
    info = libc.mallinfo2()
    return [info.uordblks + info.hblkhd, sum(map(len, kept))]


ANSWERS = {"work": work, "keep": keep, "kept": check, "memory": memory}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        _, what, number = self.path.split("/")
        body = json.dumps(ANSWERS[what](int(number))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("ready", server.server_port, flush=True)
server.serve_forever()
