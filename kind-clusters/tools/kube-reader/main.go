// Command kube-reader reads files of manifests as kubectl reads them.
//
// Each line of standard input is one file in Base64. Each line of standard output is its reading: a JSON object with
// `documents` (the documents that are not empty) or with `error`.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	kubejson "sigs.k8s.io/json"
)

// lineBytesMax is the longest line of standard input.
const lineBytesMax = 64 * 1024 * 1024

// sniffedBytes is how far kubectl looks for the beginning of JSON.
const sniffedBytes = 4096

type reading struct {
	Documents []any  `json:"documents"`
	Error     string `json:"error,omitempty"`
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, lineBytesMax)
	output := bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(output)
	encoder.SetEscapeHTML(false)
	for lines.Scan() {
		file, err := base64.StdEncoding.DecodeString(lines.Text())
		if err != nil {
			fail(err)
		}
		var result reading
		if result.Documents, err = read(file); err != nil {
			result = reading{Error: err.Error()}
		}
		if err := encoder.Encode(result); err != nil {
			fail(err)
		}
	}
	if err := lines.Err(); err != nil {
		fail(err)
	}
	if err := output.Flush(); err != nil {
		fail(err)
	}
}

// read does what FileVisitor and StreamVisitor of k8s.io/cli-runtime/pkg/resource do with a file, and what
// UnstructuredJSONScheme does with each document.
func read(file []byte) (documents []any, err error) {
	defer func() {
		if problem := recover(); problem != nil {
			err = fmt.Errorf("panic: %v", problem)
		}
	}()
	text := transform.NewReader(bytes.NewReader(file), unicode.BOMOverride(unicode.UTF8.NewDecoder()))
	decoder := yaml.NewYAMLOrJSONDecoder(text, sniffedBytes)
	for {
		var document runtime.RawExtension
		if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
			return documents, nil
		} else if err != nil {
			return nil, err
		}
		raw := bytes.TrimSpace(document.Raw)
		if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
			continue
		}
		var value any
		if err := kubejson.UnmarshalCaseSensitivePreserveInts(raw, &value); err != nil {
			return nil, err
		}
		documents = append(documents, value)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "kube-reader:", err)
	os.Exit(1)
}
