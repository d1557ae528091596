// The article's writer: stores ?content= in a file, in place. CONFIG and PORT move it for tests.
package main

import (
	"net/http"
	"os"
	"path/filepath"

	"github.com/gin-gonic/gin"
)

func setting(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

func main() {
	path := setting("CONFIG", "/tmp/gin/config")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		panic(err)
	}
	file, err := os.Create(path)
	if err != nil {
		panic(err)
	}
	file.Close()

	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	router.GET("/", func(c *gin.Context) {
		if err := os.WriteFile(path, []byte(c.Query("content")), 0o644); err != nil {
			c.JSON(http.StatusInternalServerError, err.Error())
			return
		}
		c.JSON(http.StatusOK, "ok")
	})
	if err := router.Run("127.0.0.1:" + setting("PORT", "8080")); err != nil {
		panic(err)
	}
}
