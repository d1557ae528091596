// The article's reader: answers with the file, "ok" where there is none. CONFIG and PORT move it for tests.
package main

import (
	"net/http"
	"os"

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
	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	router.GET("/", func(c *gin.Context) {
		content, err := os.ReadFile(path)
		if err != nil {
			c.JSON(http.StatusOK, "ok")
			return
		}
		c.JSON(http.StatusOK, string(content))
	})
	if err := router.Run("127.0.0.1:" + setting("PORT", "8081")); err != nil {
		panic(err)
	}
}
