// River beside ledgerbeam's messages: does what benchmarks/peers.py asks for by lines of its input.
//
// "schedule COUNT DUE" inserts jobs for a moment in milliseconds, "work COUNT" works them off, "late
// COUNT EVERY" inserts one every so many milliseconds, and gives milliseconds from due time to work.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

const (
	payers = 10_000
	batch  = 1_000
	// So many at most are fetched at once, every 100 ms by default: with a hundred, 1,000 a second.
	workers = 2_000
	// Of the handlers; River has others, for which it doesn't wait behind them.
	connections = 8
)

type paymentDue struct {
	Request int    `json:"request"`
	Payer   string `json:"payer"`
}

func (paymentDue) Kind() string { return "payment-due" }

// worker changes the customer's row, in the transaction that completes the job.
type worker struct {
	river.WorkerDefaults[paymentDue]

	pool *pgxpool.Pool
	mu   sync.Mutex
	late []float64
	want int
	done chan struct{}
}

func (w *worker) Work(ctx context.Context, job *river.Job[paymentDue]) error {
	late := float64(time.Since(job.ScheduledAt).Microseconds()) / 1e3
	tx, err := w.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	const update = "UPDATE customer SET handled = handled + 1 WHERE id = $1"
	if _, err = tx.Exec(ctx, update, job.Args.Payer); err != nil {
		return err
	}
	if _, err = river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job); err != nil {
		return err
	}
	if err = tx.Commit(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.late = append(w.late, late)
	if len(w.late) == w.want {
		close(w.done)
	}
	return nil
}

type peer struct {
	worker *worker
	client *river.Client[pgx.Tx]
}

func (p *peer) schedule(ctx context.Context, count int, due time.Time) {
	for start := 0; start < count; start += batch {
		var jobs []river.InsertManyParams
		for n := start; n < min(start+batch, count); n++ {
			args := paymentDue{Request: n, Payer: fmt.Sprintf("P%d", n%payers)}
			jobs = append(jobs, river.InsertManyParams{
				Args:       args,
				InsertOpts: &river.InsertOpts{ScheduledAt: due},
			})
		}
		_, err := p.client.InsertManyFast(ctx, jobs)
		check(err)
	}
}

// working does something while jobs are worked, and waits for the end of so many.
func (p *peer) working(ctx context.Context, count int, during func()) []float64 {
	p.worker.late, p.worker.want, p.worker.done = nil, count, make(chan struct{})
	check(p.client.Start(ctx))
	during()
	<-p.worker.done
	check(p.client.Stop(ctx))
	return p.worker.late
}

func main() {
	ctx := context.Background()
	config, err := pgxpool.ParseConfig(os.Args[1])
	check(err)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	check(err)
	config.MaxConns = connections
	handlers, err := pgxpool.NewWithConfig(ctx, config)
	check(err)
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, nil)
	check(err)
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	check(err)
	w := &worker{pool: handlers}
	all := river.NewWorkers()
	river.AddWorker(all, w)
	client, err := river.NewClient(driver, &river.Config{
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}},
		Workers: all,
	})
	check(err)
	p := &peer{w, client}
	fmt.Println(`"ready"`)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var verb string
		var count, number int
		fmt.Sscan(lines.Text(), &verb, &count, &number)
		answer := []float64{}
		switch verb {
		case "schedule":
			p.schedule(ctx, count, time.UnixMilli(int64(number)))
		case "work":
			p.working(ctx, count, func() {})
		case "late":
			every := time.Duration(number) * time.Millisecond
			answer = p.working(ctx, count, func() {
				for range count {
					p.schedule(ctx, 1, time.Now().Add(every*7/10))
					time.Sleep(every)
				}
			})
		}
		check(json.NewEncoder(os.Stdout).Encode(answer))
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
