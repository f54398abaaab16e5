package main

import (
	"encoding/binary"
	"fmt"
	"image"
	"image/draw"
	"image/jpeg"
	"io"
	"math"
	"net/http"

	ort "github.com/yalue/onnxruntime_go"
)

const (
	side     = 224
	channels = 3
	nPixels  = side * side
	nClasses = 1000
)

var (
	mean      = [channels]float32{0.485, 0.456, 0.406}
	deviation = [channels]float32{0.229, 0.224, 0.225}
)

type prediction struct {
	Class int     `json:"class"`
	Score float32 `json:"score"`
}

// imageModel may be run by many goroutines at the same time.
type imageModel struct{ session *ort.DynamicAdvancedSession }

func openImageModel(path string) (*imageModel, error) {
	session, err := openSession(path, "image", "scores")
	return &imageModel{session}, err
}

func (m *imageModel) infer(tensor []float32) (prediction, error) {
	input, err := ort.NewTensor(ort.NewShape(1, channels, side, side), tensor)
	if err != nil {
		return prediction{}, err
	}
	defer input.Destroy()
	scores := make([]float32, nClasses)
	output, err := ort.NewTensor(ort.NewShape(1, nClasses), scores)
	if err != nil {
		return prediction{}, err
	}
	defer output.Destroy()
	if err := m.session.Run([]ort.Value{input}, []ort.Value{output}); err != nil {
		return prediction{}, err
	}
	best := 0
	for class, score := range scores {
		if score > scores[best] {
			best = class
		}
	}
	return prediction{best, scores[best]}, nil
}

func (s *server) predict(w http.ResponseWriter, r *http.Request) {
	var tensor []float32
	var err error
	switch r.Header.Get("Content-Type") {
	case "application/json":
		var body struct {
			Tensor [][][][]float32 `json:"tensor"`
		}
		if !decode(w, r, &body) {
			return
		}
		tensor, err = flatten(body.Tensor)
	case "application/octet-stream":
		tensor, err = readBinary(r.Body)
	case "image/jpeg":
		tensor, err = readJPEG(r.Body)
	default:
		fail(w, http.StatusUnsupportedMediaType, "expected application/json, application/octet-stream or image/jpeg")
		return
	}
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	found, err := s.image.infer(tensor)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	reply(w, http.StatusOK, found)
}

func flatten(nested [][][][]float32) ([]float32, error) {
	if len(nested) != 1 || len(nested[0]) != channels {
		return nil, fmt.Errorf("tensor: expected shape 1x%dx%dx%d", channels, side, side)
	}
	tensor := make([]float32, 0, channels*nPixels)
	for _, plane := range nested[0] {
		for _, row := range plane {
			tensor = append(tensor, row...)
		}
		if len(plane) != side {
			return nil, fmt.Errorf("tensor: a plane has %d rows: expected %d", len(plane), side)
		}
	}
	if len(tensor) != channels*nPixels {
		return nil, fmt.Errorf("tensor: %d numbers: expected %d", len(tensor), channels*nPixels)
	}
	return tensor, nil
}

func readBinary(body io.Reader) ([]float32, error) {
	content, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	if len(content) != 4*channels*nPixels {
		return nil, fmt.Errorf("%d bytes: expected %d", len(content), 4*channels*nPixels)
	}
	tensor := make([]float32, channels*nPixels)
	for i := range tensor {
		tensor[i] = math.Float32frombits(binary.LittleEndian.Uint32(content[4*i:]))
	}
	return tensor, nil
}

func readJPEG(body io.Reader) ([]float32, error) {
	decoded, err := jpeg.Decode(body)
	if err != nil {
		return nil, err
	}
	if size := decoded.Bounds().Size(); size.X != side || size.Y != side {
		return nil, fmt.Errorf("%dx%d pixels: expected %dx%d", size.X, size.Y, side, side)
	}
	pixels := image.NewRGBA(image.Rect(0, 0, side, side))
	draw.Draw(pixels, pixels.Bounds(), decoded, decoded.Bounds().Min, draw.Src)
	tensor := make([]float32, channels*nPixels)
	for i := range nPixels {
		for c := range channels {
			tensor[c*nPixels+i] = (float32(pixels.Pix[4*i+c])/255 - mean[c]) / deviation[c]
		}
	}
	return tensor, nil
}
