// What the Java virtual machine's compilers and its intrinsic functions make of vectors, digests, numbers,
// exceptions that come from faults, and threads.

import java.math.BigInteger;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import java.util.zip.Adler32;
import java.util.zip.CRC32;
import java.util.zip.CRC32C;
import java.util.zip.Checksum;
import javax.crypto.Cipher;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.SecretKeySpec;

public class Results {
    static long fibonacci(int n) {
        return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
    }

    static double mandelbrot(int size) {
        double sum = 0;
        for (int y = 0; y < size; y++) {
            for (int x = 0; x < size; x++) {
                double cr = 2.0 * x / size - 1.5, ci = 2.0 * y / size - 1, zr = 0, zi = 0;
                int rounds = 0;
                for (; rounds < 50 && zr * zr + zi * zi < 4; rounds++) {
                    double next = zr * zr - zi * zi + cr;
                    zi = 2 * zr * zi + ci;
                    zr = next;
                }
                sum += rounds + zr;
            }
        }
        return sum;
    }

    static double functions() {
        double sum = 0;
        for (int i = 1; i < 200_000; i++) {
            sum += Math.sin(i) * Math.log(i) / Math.sqrt(i) + Math.pow(i, 0.3) + Math.exp(-i * 1e-5);
            sum = Math.fma(i, 1e-3, sum * (1 - 1e-9));
        }
        return sum;
    }

    static float vectors() {
        float[] values = new float[10_000];
        for (int i = 0; i < values.length; i++) {
            values[i] = i % 97 * 0.37f;
        }
        float sum = 0;
        for (int round = 0; round < 200; round++) {
            for (int i = 0; i < values.length; i++) {
                values[i] = values[i] * 0.999f + 0.01f;
                sum += values[i];
            }
        }
        return sum;
    }

    // A null pointer is met by a page fault, a division by a trap.
    static int faults() {
        int met = 0;
        for (int i = 0; i < 20_000; i++) {
            String nothing = i % 3 == 0 ? null : "x";
            try {
                met += nothing.length() / (i % 5);
            } catch (NullPointerException pointer) {
                met += 100;
            } catch (ArithmeticException division) {
                met += 10_000;
            }
        }
        return met;
    }

    static int threads() throws InterruptedException {
        ConcurrentHashMap<Integer, Integer> counts = new ConcurrentHashMap<>();
        Thread[] threads = new Thread[4];
        for (int n = 0; n < threads.length; n++) {
            threads[n] = new Thread(() -> {
                for (int i = 0; i < 50_000; i++) {
                    counts.merge(i % 5000, 1, Integer::sum);
                }
            });
            threads[n].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        return counts.hashCode();
    }

    static void digests() throws Exception {
        byte[] data = new byte[1 << 20];
        new Random(5).nextBytes(data);
        for (String name : new String[] {"MD5", "SHA-1", "SHA-256", "SHA-512", "SHA3-256"}) {
            System.out.println(name + " " + Arrays.hashCode(MessageDigest.getInstance(name).digest(data)));
        }
        for (Checksum checksum : new Checksum[] {new CRC32(), new CRC32C(), new Adler32()}) {
            checksum.update(data);
            System.out.println(checksum.getClass().getSimpleName() + " " + checksum.getValue());
        }
        Cipher cipher = Cipher.getInstance("AES/GCM/NoPadding");
        SecretKeySpec key = new SecretKeySpec(new byte[32], "AES");
        cipher.init(Cipher.ENCRYPT_MODE, key, new GCMParameterSpec(128, new byte[12]));
        System.out.println("AES " + Arrays.hashCode(cipher.doFinal(data)));
    }

    public static void main(String[] arguments) throws Exception {
        System.out.println(fibonacci(30) + " " + mandelbrot(300) + " " + functions() + " " + vectors());
        System.out.println(faults() + " " + threads());
        digests();
        BigInteger product = BigInteger.ONE;
        for (int i = 1; i < 1500; i++) {
            product = product.multiply(BigInteger.valueOf(i));
        }
        BigInteger prime = BigInteger.TWO.pow(1279).subtract(BigInteger.ONE);
        System.out.println(product.hashCode() + " " + product.modPow(product.shiftRight(7000), prime).hashCode());
        int[] numbers = new Random(1).ints(300_000).toArray();
        Arrays.parallelSort(numbers);
        System.out.println(Arrays.hashCode(numbers));
        System.out.println(IntStream.range(0, 200_000).parallel().mapToLong(i -> (long) i * i % 7).sum());
        TreeMap<String, Integer> words = new TreeMap<>();
        for (int i = 0; i < 100_000; i++) {
            words.merge("k" + i * 7919 % 1009, 1, Integer::sum);
        }
        System.out.println(words.hashCode());
        System.out.println(Pattern.compile("(a+)(b|c)*d").matcher("aaabcbcdxx".repeat(2000)).results().count());
    }
}
