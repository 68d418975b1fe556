import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.util.zip.Deflater;

/** A JVM at work: for every line that it reads it compresses something a few times, which native code does. */
public class Deflate {
    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        System.out.println("ready");
        while (lines.readLine() != null) {
            for (int round = 0; round < 50; round++) {
                Deflater deflater = new Deflater();
                deflater.setInput(new byte[1 << 16]);
                deflater.finish();
                deflater.deflate(ByteBuffer.allocateDirect(1 << 16));
                deflater.end();
            }
            System.out.println("done");
        }
    }
}
