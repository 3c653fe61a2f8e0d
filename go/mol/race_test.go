//go:build race

package mol

const raceDetector = true
