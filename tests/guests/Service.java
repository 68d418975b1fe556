// The service of service.rs in Java: what it keeps, and what it works on, is outside of the JVM's own heap.

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.concurrent.Executors;
import java.util.regex.Pattern;
import java.util.zip.Deflater;
import java.util.zip.Inflater;
import javax.management.ObjectName;
import sun.misc.Unsafe;

class Service {
    static final int MIB = 1 << 20;
    static final Unsafe UNSAFE = unsafe();
    static final ArrayList<Long> kept = new ArrayList<>();

    static Unsafe unsafe() {
        try {
            var field = Unsafe.class.getDeclaredField("theUnsafe");
            field.setAccessible(true);
            return (Unsafe) field.get(null);
        } catch (ReflectiveOperationException error) {
            throw new AssertionError(error);
        }
    }

    static long[] work(int seed) throws Exception {
        var plain = ByteBuffer.allocateDirect(20000);
        var packed = ByteBuffer.allocateDirect(40000);
        var unpacked = ByteBuffer.allocateDirect(40000);
        while (plain.hasRemaining()) plain.put((byte) (plain.position() * seed));
        plain.flip();
        var deflater = new Deflater();
        deflater.setInput(plain);
        deflater.finish();
        while (!deflater.finished()) deflater.deflate(packed);
        deflater.end();
        packed.flip();
        var inflater = new Inflater();
        inflater.setInput(packed);
        while (!inflater.finished()) inflater.inflate(unpacked);
        inflater.end();
        unpacked.flip();
        long length = unpacked.remaining(), sum = 0;
        while (unpacked.hasRemaining()) sum += unpacked.get() & 255;
        // Now, and not when the collector comes by.
        for (var buffer : new ByteBuffer[] {plain, packed, unpacked}) UNSAFE.invokeCleaner(buffer);
        return new long[] {length, sum};
    }

    static synchronized long[] keep(int count) {
        while (kept.size() < count) {
            long address = UNSAFE.allocateMemory(MIB);
            UNSAFE.setMemory(address, MIB, (byte) kept.size());
            kept.add(address);
        }
        while (kept.size() > count) UNSAFE.freeMemory(kept.remove(kept.size() - 1));
        return new long[] {kept.size()};
    }

    static synchronized long[] kept() {
        long right = 0;
        for (int at = 0; at < kept.size(); at++) {
            boolean same = true;
            for (int byteAt = 0; byteAt < MIB; byteAt++) {
                same &= UNSAFE.getByte(kept.get(at) + byteAt) == (byte) at;
            }
            if (same) right++;
        }
        return new long[] {right};
    }

    // What `jcmd PID VM.native_memory summary` says: bytes by malloc, and those of them that the program asked for itself.
    static long[] memory() throws Exception {
        var name = new ObjectName("com.sun.management:type=DiagnosticCommand");
        var arguments = new Object[] {new String[] {"summary", "scale=B"}};
        var types = new String[] {String[].class.getName()};
        var server = ManagementFactory.getPlatformMBeanServer();
        String text = (String) server.invoke(name, "vmNativeMemory", arguments, types);
        return new long[] {number(text, "malloc: (\\d+)"), number(text, " Other \\(.*\\s+\\(malloc=(\\d+)")};
    }

    static long number(String text, String pattern) {
        var found = Pattern.compile(pattern).matcher(text);
        return found.find() ? Long.parseLong(found.group(1)) : 0;
    }

    static void answer(HttpExchange exchange) throws IOException {
        String[] parts = exchange.getRequestURI().getPath().split("/");
        int number = Integer.parseInt(parts[2]);
        int status = 200;
        String text;
        try {
            text = Arrays.toString(switch (parts[1]) {
                case "work" -> work(number);
                case "keep" -> keep(number);
                case "kept" -> kept();
                default -> memory();
            });
        } catch (Exception error) {
            status = 500;
            text = error.toString();
        }
        exchange.sendResponseHeaders(status, text.length());
        exchange.getResponseBody().write(text.getBytes());
        exchange.close();
    }

    public static void main(String[] arguments) throws Exception {
        var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.createContext("/", Service::answer);
        server.setExecutor(Executors.newFixedThreadPool(3));
        server.start();
        System.out.println("ready " + server.getAddress().getPort());
    }
}
