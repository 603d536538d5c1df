// What Go's compiler and the assembly language of its library compute, and faults that become panics.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash/crc32"
	"math"
	"math/big"
	"regexp"
	"sort"
	"strings"
	"sync"
)

func fibonacci(n int) int {
	if n < 2 {
		return n
	}
	return fibonacci(n-1) + fibonacci(n-2)
}

func numbers() {
	sum := 0.0
	for i := 1; i < 300000; i++ {
		x := float64(i)
		sum += math.Sin(x)*math.Log(x) + math.Sqrt(x) - math.Floor(x/3)
		sum = math.FMA(x, 1e-3, sum*(1-1e-9))
	}
	product := big.NewInt(1)
	for i := int64(1); i < 2000; i++ {
		product.Mul(product, big.NewInt(i))
	}
	power := new(big.Int).Exp(big.NewInt(3), new(big.Int).Sqrt(product), big.NewInt(1<<61-1))
	values, last := make([]int, 300000), uint32(1)
	for i := range values {
		last = last*1664525 + 1013904223
		values[i] = int(last >> 3)
	}
	sort.Ints(values)
	fmt.Println(fibonacci(30), math.Float64bits(sum), power, values[1000], values[299999])
}

func digests(data []byte) {
	fmt.Printf("%x\n%x\n%x\n", sha1.Sum(data), sha256.Sum256(data), sha512.Sum512(data))
	fmt.Println(crc32.ChecksumIEEE(data), crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
	block, _ := aes.NewCipher(make([]byte, 32))
	mode, _ := cipher.NewGCM(block)
	fmt.Printf("%x\n", sha256.Sum256(mode.Seal(nil, make([]byte, 12), data, nil)))
	public, private, _ := ed25519.GenerateKey(bytes.NewReader(make([]byte, 64)))
	signature := ed25519.Sign(private, data[:1000])
	fmt.Printf("%x %v\n", signature, ed25519.Verify(public, data[:1000], signature))
	fmt.Println(elliptic.P256().ScalarBaseMult(data[:32]))
	var packed bytes.Buffer
	writer := gzip.NewWriter(&packed)
	writer.Write(data)
	writer.Close()
	fmt.Println(packed.Len())
}

func routines() {
	var all sync.WaitGroup
	var lock sync.Mutex
	counts := map[int]int{}
	for n := 0; n < 8; n++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for i := 0; i < 20000; i++ {
				lock.Lock()
				counts[i%1000]++
				lock.Unlock()
			}
		}()
	}
	all.Wait()
	sum, numbers := 0, make(chan int)
	go func() {
		for i := 0; i < 100000; i++ {
			numbers <- i
		}
		close(numbers)
	}()
	for n := range numbers {
		sum += n * counts[n%1000]
	}
	fmt.Println(sum)
}

func recovered(body func()) {
	defer func() { fmt.Println(recover()) }()
	body()
}

func main() {
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * 7)
	}
	numbers()
	digests(data)
	routines()
	fmt.Println(len(regexp.MustCompile(`(a+)(b|c)*d`).FindAllString(strings.Repeat("aaabcbcdxx", 5000), -1)))
	var nowhere *int
	zero := len(data) - 1<<20
	recovered(func() { fmt.Println(*nowhere) })
	recovered(func() { fmt.Println(1 / zero) })
	recovered(func() { fmt.Println(data[len(data)+zero]) })
}
