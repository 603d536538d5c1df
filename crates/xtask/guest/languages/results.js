// What V8's compilers make of numbers, objects, exceptions and WebAssembly, and what Node's libraries compute.

const crypto = require("crypto");
const zlib = require("zlib");

const fibonacci = (n) => (n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2));

function numbers() {
    let small = 0;
    for (let i = 1; i < 1e6; i++) {
        small = (small * 31 + i) | 0;
        small ^= small >>> 3;
    }
    let large = 0.1;
    for (let i = 0; i < 1e6; i++) {
        large = Math.sqrt(large * large + 1e-7) + Math.fround(large) * 1e-9;
    }
    let product = 1n;
    for (let i = 1n; i < 1200n; i++) product *= i;
    const sorted = Float64Array.from({ length: 100000 }, (_, i) => (Math.sin(i) * 1e6) % 17).sort();
    return [small, large, product % 1000000007n, sorted[5000], sorted[77777]].join(" ");
}

class Shape {
    constructor(size) { this.size = size; }
    get area() { return this.size * 2; }
}

class Square extends Shape {
    get area() { return super.area + 1; }
}

function objects() {
    let sum = 0;
    for (let i = 0; i < 1e6; i++) sum += (i & 1 ? new Shape(i) : new Square(i)).area;
    const counts = new Map();
    for (let i = 0; i < 200000; i++) {
        const key = "k" + ((i * 7919) % 5003);
        counts.set(key, (counts.get(key) || 0) + i);
    }
    for (const [key, count] of counts) sum = (sum * 17 + count + key.length) | 0;
    for (let i = 0; i < 100000; i++) {
        try {
            if (i % 3 === 0) throw new Error(i);
            sum += i;
        } catch (error) {
            sum -= error.message.length;
        }
    }
    return sum;
}

// (func (export "sum") (param i32) (result i32)): the sum of the numbers up to the parameter, by a loop.
const MODULE = Uint8Array.of(
    0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0, 7, 7, 1, 3, 115, 117, 109, 0, 0,
    10, 30, 1, 28, 1, 1, 127, 3, 64, 32, 1, 32, 0, 106, 33, 1, 32, 0, 65, 1, 107, 34, 0, 13, 0, 11, 32, 1, 11);

console.log(fibonacci(30), numbers(), objects());
try {
    console.log(new WebAssembly.Instance(new WebAssembly.Module(MODULE)).exports.sum(1000000));
} catch (error) {
    console.log(error.message);
}
const data = Buffer.from(Array.from({ length: 1 << 20 }, (_, i) => (i * 7) & 255));
for (const name of ["md5", "sha1", "sha256", "sha512"]) {
    console.log(name, crypto.createHash(name).update(data).digest("hex"));
}
const cipher = crypto.createCipheriv("aes-256-gcm", Buffer.alloc(32), Buffer.alloc(12));
console.log(crypto.createHash("sha1").update(cipher.update(data)).digest("hex"));
const packed = zlib.gzipSync(data);
console.log(packed.length, zlib.gunzipSync(packed).equals(data), zlib.brotliCompressSync(data).length);
console.log("a1b22c333".repeat(10000).replace(/\d+/g, (digits) => digits.length).length);
